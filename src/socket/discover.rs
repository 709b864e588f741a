//! The OpenRPC document, from the same table that commands are read by.

use serde_json::{Map, Value, json};

use crate::protocol::{Fault, METHODS};

/// The document that `rpc.discover` answers with.
#[must_use]
pub fn open_rpc() -> Value {
    let methods: Vec<_> = METHODS
        .iter()
        .map(|method| {
            let schema = (method.params)().to_value();
            let required = schema["required"].as_array().cloned().unwrap_or_default();
            let properties = schema["properties"].as_object().cloned().unwrap_or_default();
            let params: Vec<_> = properties
                .into_iter()
                .map(|(name, schema)| {
                    let required = required.contains(&Value::from(name.as_str()));
                    json!({"name": name, "required": required, "schema": schema})
                })
                .collect();
            json!({
                "name": method.name, "summary": method.about, "paramStructure": "by-name", "params": params,
                "result": {"name": "result", "schema": {"type": "object"}},
                "x-definitions": schema.get("$defs"),
            })
        })
        .collect();
    let errors: Map<_, _> = Fault::ALL
        .iter()
        .map(|fault| (fault.code().into(), json!({"code": fault.rpc(), "message": fault.code()})))
        .collect();
    json!({
        "openrpc": "1.3.2",
        "info": {"title": "Sibling Sockets", "version": env!("CARGO_PKG_VERSION")},
        "methods": methods,
        "components": {"errors": errors},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_is_described() {
        let document = open_rpc();
        let pause = document["methods"].as_array().unwrap().iter().find(|m| m["name"] == "client.pause").unwrap();
        let names: Vec<_> = pause["params"].as_array().unwrap().iter().map(|p| &p["name"]).collect();
        assert_eq!(names, ["direction", "policy"]);
        assert_eq!(document["components"]["errors"]["client_detached"]["code"], -32017);
    }
}
