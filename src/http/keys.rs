//! Keys that verify tokens.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use ed25519_dalek::VerifyingKey;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey};
use rsa::{
    BigUint, RsaPublicKey,
    pkcs1::{DecodeRsaPublicKey as _, EncodeRsaPublicKey as _},
    pkcs8::{
        ObjectIdentifier,
        der::{Decode as _, Document},
        spki::SubjectPublicKeyInfoRef,
    },
    traits::PublicKeyParts as _,
};
use serde::Deserialize;

/// The lengths of an RSA key's modulus that are taken, in bits: shorter ones are broken, longer ones slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2_048..=4_096;

/// What is taken from outside.
const KINDS: &str = "RSA, P-256, P-384 or Ed25519";

const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// A key that verifies tokens. The key says which algorithms it is for: a token can't choose how it is checked.
#[derive(Clone)]
pub struct Key {
    /// Its name in a key set.
    pub(super) id: Option<String>,
    /// What it is for.
    pub(super) algorithms: Vec<Algorithm>,
    pub(super) decoding: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?} {:?})", self.id, self.algorithms)
    }
}

/// A key of a key set, as RFC 7517 writes it; what is not said here is not looked at.
#[derive(Deserialize)]
pub(super) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
}

impl Key {
    /// Reads a key as it stands in a setting: a secret, or a public key as PEM.
    ///
    /// # Errors
    /// A phrase that says what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.contains("-----BEGIN") {
            return Self::from_pem(text);
        }
        let der = STANDARD.decode(text.split_whitespace().collect::<String>()).unwrap_or_default();
        if text.starts_with(['{', '[']) || SubjectPublicKeyInfoRef::from_der(&der).is_ok() {
            // Taken for a secret, it would be one that everybody knows.
            return Err("is a public key, and not as PEM: write it with its lines BEGIN and END".into());
        }
        if text.is_empty() {
            return Err("is empty".into());
        }
        Ok(Self::of(AlgorithmFamily::Hmac.algorithms(), DecodingKey::from_secret(text.as_bytes())))
    }

    /// Whether whoever has it can sign, too.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.decoding.family() == AlgorithmFamily::Hmac
    }

    fn from_pem(text: &str) -> Result<Self, String> {
        // In a file of settings, lines are often written so.
        let text = text.replace("\\n", "\n");
        let mut blocks = text.match_indices("-----BEGIN").map(|(start, _)| &text[start..]);
        let (Some(block), None) = (blocks.next(), blocks.next()) else {
            return Err("has several keys: a key set (SIBLING_JWKS_URL) is for that".into());
        };
        let (label, der) = Document::from_pem(block).map_err(|error| format!("is no PEM: {error}"))?;
        match label {
            "PUBLIC KEY" => Self::from_der(der.as_bytes()),
            "RSA PUBLIC KEY" => Self::from_pkcs1(der.as_bytes()),
            label if label.ends_with("PRIVATE KEY") => {
                Err("is a private key, which should not be here: openssl pkey -in FILE -pubout writes the public one"
                    .into())
            }
            _ => Err("is no public key: openssl x509 -in FILE -pubkey -noout writes that of a certificate".into()),
        }
    }

    fn from_der(der: &[u8]) -> Result<Self, String> {
        let info = SubjectPublicKeyInfoRef::from_der(der).map_err(|error| format!("is no public key: {error}"))?;
        let bytes = info.subject_public_key.as_bytes().unwrap_or_default();
        let curve = || info.algorithm.parameters_oid().ok();
        match info.algorithm.oid {
            RSA => Self::from_pkcs1(bytes),
            EC if curve() == Some(P256) => Self::from_point("P-256", bytes),
            EC if curve() == Some(P384) => Self::from_point("P-384", bytes),
            ED25519 => Self::from_point("Ed25519", bytes),
            _ => Err(format!("is of a kind that is not taken: {KINDS}")),
        }
    }

    fn from_pkcs1(der: &[u8]) -> Result<Self, String> {
        let key = RsaPublicKey::from_pkcs1_der(der).map_err(|error| format!("is no RSA key: {error}"))?;
        let bits = key.n().bits();
        if !RSA_BITS.contains(&bits) {
            return Err(format!("is an RSA key of {bits} bits: {} to {}", RSA_BITS.start(), RSA_BITS.end()));
        }
        Ok(Self::of(AlgorithmFamily::Rsa.algorithms(), DecodingKey::from_rsa_der(der)))
    }

    /// The library takes a point's bytes as they are, and looks at them only when a token comes.
    fn from_point(curve: &str, bytes: &[u8]) -> Result<Self, String> {
        let (algorithm, good, key) = match curve {
            "P-256" => {
                let good = p256::PublicKey::from_sec1_bytes(bytes).is_ok();
                (Algorithm::ES256, good, DecodingKey::from_ec_der(bytes))
            }
            "P-384" => {
                let good = p384::PublicKey::from_sec1_bytes(bytes).is_ok();
                (Algorithm::ES384, good, DecodingKey::from_ec_der(bytes))
            }
            "Ed25519" => {
                let point = bytes.try_into().ok().and_then(|bytes| VerifyingKey::from_bytes(bytes).ok());
                (Algorithm::EdDSA, point.is_some_and(|point| !point.is_weak()), DecodingKey::from_ed_der(bytes))
            }
            _ => return Err(format!("is of a kind that is not taken: {KINDS}")),
        };
        if good { Ok(Self::of(&[algorithm], key)) } else { Err(format!("is no point on {curve}")) }
    }

    fn of(algorithms: &[Algorithm], decoding: DecodingKey) -> Self {
        Self { id: None, algorithms: algorithms.to_vec(), decoding }
    }

    /// Reads a key of a key set. Secrets are not taken from there: whoever can read the set could sign.
    ///
    /// # Errors
    /// A phrase that says why it is not taken.
    pub(super) fn from_jwk(jwk: &Jwk) -> Result<Self, String> {
        if jwk.purpose.as_ref().is_some_and(|purpose| purpose != "sig")
            || jwk.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify"))
        {
            return Err("is not for signatures".into());
        }
        let field = |name: &str, value: &Option<String>| {
            let bytes = value.as_ref().and_then(|value| URL_SAFE_NO_PAD.decode(value).ok());
            bytes.ok_or_else(|| format!("has no {name}"))
        };
        let curve = jwk.crv.as_deref().unwrap_or_default();
        let mut key = match jwk.kty.as_str() {
            "RSA" => {
                let number = |bytes: Vec<u8>| BigUint::from_bytes_be(&bytes);
                let (n, e) = (number(field("n", &jwk.n)?), number(field("e", &jwk.e)?));
                let key = RsaPublicKey::new(n, e).map_err(|error| format!("is no RSA key: {error}"))?;
                Self::from_pkcs1(key.to_pkcs1_der().map_err(|error| error.to_string())?.as_bytes())?
            }
            "EC" if curve.starts_with("P-") => {
                Self::from_point(curve, &[vec![4], field("x", &jwk.x)?, field("y", &jwk.y)?].concat())?
            }
            "OKP" if curve == "Ed25519" => Self::from_point(curve, &field("x", &jwk.x)?)?,
            _ => return Err(format!("is of a kind that is not taken: {KINDS}")),
        };
        if let Some(alg) = &jwk.alg {
            key.algorithms.retain(|algorithm| format!("{algorithm:?}") == *alg);
        }
        if key.algorithms.is_empty() {
            return Err("has an alg that does not fit its kind".into());
        }
        key.id.clone_from(&jwk.kid);
        Ok(key)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The public keys of RFC 7517, appendix A.1, and of RFC 8037, appendix A.2.
    fn known() -> [Value; 3] {
        [
            json!({"kty": "EC", "crv": "P-256", "kid": "1", "use": "sig",
                "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4", "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}),
            json!({"kty": "RSA", "alg": "RS256", "kid": "2011-04-29", "e": "AQAB",
                "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}),
        ]
    }

    fn key(jwk: &Value) -> Result<Key, String> {
        Key::from_jwk(&serde_json::from_value(jwk.clone()).unwrap())
    }

    #[test]
    fn a_key_is_for_the_algorithms_of_its_kind() {
        let algorithms: Vec<_> = known().iter().map(|jwk| key(jwk).unwrap().algorithms).collect();
        assert_eq!(algorithms, [vec![Algorithm::ES256], vec![Algorithm::RS256], vec![Algorithm::EdDSA]]);
        let mut open = known()[1].clone();
        open["alg"] = Value::Null;
        assert_eq!(key(&open).unwrap().algorithms, AlgorithmFamily::Rsa.algorithms());
        assert_eq!(Key::read("a secret").unwrap().algorithms, AlgorithmFamily::Hmac.algorithms());
    }

    #[test]
    fn odd_keys_of_a_set_are_refused_when_they_are_read() {
        for (which, field, value) in [
            (0, "use", json!("enc")),
            (0, "key_ops", json!(["sign"])),
            (0, "crv", json!("P-384")),
            (0, "crv", json!("P-521")),
            (0, "x", json!("MKBC")),
            (0, "y", Value::Null),
            (0, "y", json!("MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4")),
            (0, "alg", json!("HS256")),
            (0, "alg", json!("RS256")),
            (0, "kty", json!("oct")),
            (1, "n", json!("0vx7agoebGcQSuuPiLJXZptN9nnd")),
            (1, "e", json!("")),
            (1, "alg", json!("RSA-OAEP")),
            // The library would panic over this one when a token comes.
            (2, "x", json!("11qYAYKxCrfVS_7T")),
            (2, "x", json!("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")),
            (2, "crv", json!("X25519")),
        ] {
            let mut jwk = known()[which].clone();
            jwk[field] = value;
            assert!(key(&jwk).is_err(), "{jwk}");
        }
        assert!(key(&json!({"kty": "oct", "k": "c2VjcmV0"})).is_err(), "a secret");
    }

    #[test]
    fn a_public_key_is_never_taken_for_a_secret() {
        use rsa::pkcs8::{EncodePublicKey as _, LineEnding};
        let public = ed25519_dalek::SigningKey::from_bytes(&[7; 32]).verifying_key();
        let pem = public.to_public_key_pem(LineEnding::LF).unwrap();
        for text in [pem.clone(), format!("\n# ours\n{pem}\n"), pem.replace('\n', "\\n"), pem.replace('\n', "\r\n")] {
            assert_eq!(Key::read(&text).unwrap().algorithms, [Algorithm::EdDSA], "{text:?}");
        }
        let bare: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        for (text, word) in [
            (bare, "PEM"),
            ("{\"keys\":[]}".to_owned(), "PEM"),
            (String::new(), "empty"),
            (format!("{pem}{pem}"), "several"),
            (pem.replace("PUBLIC", "PRIVATE"), "private key"),
            (pem.replace("PUBLIC KEY", "CERTIFICATE"), "openssl x509"),
            (pem.replace("MC", "MD"), "no"),
            (pem[..60].to_owned(), "no PEM"),
        ] {
            let said = Key::read(&text).unwrap_err();
            assert!(said.contains(word), "{text}: {said}");
        }
    }
}
