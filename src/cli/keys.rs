//! `sibling keys generate`: fresh keys, and the private keys that sign tokens.

use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _, path::PathBuf, process::ExitCode};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use clap::{Args, Subcommand, ValueEnum};
use ed25519_dalek::{SigningKey, pkcs8::KeypairBytes};
use jsonwebtoken::{Algorithm, AlgorithmFamily, EncodingKey};
use p256::elliptic_curve::sec1::ToEncodedPoint as _;
use rsa::{
    RsaPrivateKey,
    pkcs1::{DecodeRsaPrivateKey as _, EncodeRsaPrivateKey as _},
    pkcs8::{
        DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, LineEnding, der::zeroize::Zeroizing,
    },
    rand_core::OsRng,
    traits::PublicKeyParts as _,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{FAILED, say};

/// The length of a new RSA key's modulus, in bits.
const RSA_BITS: usize = 2_048;

/// What to do with keys.
#[derive(Debug, Subcommand)]
pub(super) enum KeysTool {
    /// Make a new key: a secret on standard output, or a private key with its public half and key set
    Generate(GenerateArgs),
}

/// Which key to make.
#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    /// What it is to be
    #[arg(long, default_value = "secret")]
    kind: Kind,
    /// Write private.pem, public.pem and jwks.json into this folder instead of to standard output
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A secret: for tickets, for tokens signed with HS256, or for the admin
    Secret,
    /// Tokens signed with EdDSA
    Ed25519,
    /// Tokens signed with ES256
    P256,
    /// Tokens signed with ES384
    P384,
    /// Tokens signed with RS256 or PS256
    Rsa,
}

pub(super) fn run(tool: KeysTool) -> ExitCode {
    let KeysTool::Generate(args) = tool;
    match generate(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("sibling: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn generate(args: &GenerateArgs) -> Result<(), String> {
    let Some(key) = PrivateKey::fresh(args.kind)? else {
        let secret = format!("{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        eprintln!("sibling: for SIBLING_SECRET (tickets), SIBLING_JWT_KEY (tokens) or SIBLING_ADMIN_KEY; one each");
        match &args.out {
            Some(_) => return Err("a secret goes to standard output: leave --out away".into()),
            None => say(&secret),
        }
        return Ok(());
    };
    let (private, public) = (key.private_pem()?, key.public_pem()?);
    let set = json!({"keys": [key.jwk()]}).to_string();
    let Some(folder) = &args.out else {
        say("# private key: for --key-file of sibling token issue, and for nobody else");
        say(private.trim_end());
        say("# public key: for SIBLING_JWT_KEY of the gateway");
        say(public.trim_end());
        say("# or the same as a key set: for a file that SIBLING_JWKS_URL of the gateway leads to");
        say(&set);
        return Ok(());
    };
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let write = |name: &str, mode: u32, text: &str| {
        let path = folder.join(name);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
        let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map(|()| path.display().to_string()).map_err(|error| format!("{}: {error}", path.display()))
    };
    let private = write("private.pem", 0o600, &private)?;
    let public = write("public.pem", 0o644, &public)?;
    let set = write("jwks.json", 0o644, &set)?;
    eprintln!("sibling: {private} signs: sibling token issue --key-file {private} …");
    eprintln!("sibling: {set} is the public key as a key set, for SIBLING_JWKS_URL");
    say(&format!("SIBLING_JWT_KEY_FILE={public}"));
    Ok(())
}

/// A key that signs tokens.
pub(super) enum PrivateKey {
    Ed25519(SigningKey),
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    Rsa(Box<RsaPrivateKey>),
}

impl PrivateKey {
    /// A new one; none for a secret, which is just bytes.
    fn fresh(kind: Kind) -> Result<Option<Self>, String> {
        Ok(Some(match kind {
            Kind::Secret => return Ok(None),
            Kind::Ed25519 => Self::Ed25519(SigningKey::from_bytes(&rand::random())),
            Kind::P256 => Self::P256(p256::SecretKey::random(&mut OsRng)),
            Kind::P384 => Self::P384(p384::SecretKey::random(&mut OsRng)),
            Kind::Rsa => {
                Self::Rsa(Box::new(RsaPrivateKey::new(&mut OsRng, RSA_BITS).map_err(|error| error.to_string())?))
            }
        }))
    }

    /// Reads a PEM file's text: PKCS #8, or the older forms that openssl still writes.
    pub(super) fn from_pem(text: &str) -> Result<Self, String> {
        if text.contains("ENCRYPTED") {
            return Err("has a password: openssl pkey -in FILE takes it off".into());
        }
        if text.contains("PUBLIC KEY") {
            return Err("is a public key, which can't sign".into());
        }
        let key = SigningKey::from_pkcs8_pem(text).ok().map(Self::Ed25519);
        let p256 = || p256::SecretKey::from_pkcs8_pem(text).or_else(|_| p256::SecretKey::from_sec1_pem(text));
        let key = key.or_else(|| p256().ok().map(Self::P256));
        let p384 = || p384::SecretKey::from_pkcs8_pem(text).or_else(|_| p384::SecretKey::from_sec1_pem(text));
        let key = key.or_else(|| p384().ok().map(Self::P384));
        let rsa = || RsaPrivateKey::from_pkcs8_pem(text).ok().or_else(|| RsaPrivateKey::from_pkcs1_pem(text).ok());
        let key = key.or_else(|| rsa().map(|key| Self::Rsa(Box::new(key))));
        key.ok_or_else(|| "is no private key of a kind that is taken: RSA, P-256, P-384 or Ed25519".into())
    }

    /// The algorithms that it can sign with, the usual one first.
    pub(super) fn algorithms(&self) -> &'static [Algorithm] {
        match self {
            Self::Ed25519(_) => &[Algorithm::EdDSA],
            Self::P256(_) => &[Algorithm::ES256],
            Self::P384(_) => &[Algorithm::ES384],
            Self::Rsa(_) => AlgorithmFamily::Rsa.algorithms(),
        }
    }

    /// As the library takes it.
    pub(super) fn encoding(&self) -> Result<EncodingKey, String> {
        let phrase = |error: rsa::pkcs8::Error| error.to_string();
        Ok(match self {
            Self::Ed25519(key) => EncodingKey::from_ed_der(key.to_pkcs8_der().map_err(phrase)?.as_bytes()),
            Self::P256(key) => EncodingKey::from_ec_der(key.to_pkcs8_der().map_err(phrase)?.as_bytes()),
            Self::P384(key) => EncodingKey::from_ec_der(key.to_pkcs8_der().map_err(phrase)?.as_bytes()),
            Self::Rsa(key) => {
                EncodingKey::from_rsa_der(key.to_pkcs1_der().map_err(|error| error.to_string())?.as_bytes())
            }
        })
    }

    fn private_pem(&self) -> Result<Zeroizing<String>, String> {
        let pem = match self {
            // Without the public half, which OpenSSL 3.0 does not expect there.
            Self::Ed25519(key) => {
                KeypairBytes { secret_key: key.to_bytes(), public_key: None }.to_pkcs8_pem(LineEnding::LF)
            }
            Self::P256(key) => key.to_pkcs8_pem(LineEnding::LF),
            Self::P384(key) => key.to_pkcs8_pem(LineEnding::LF),
            Self::Rsa(key) => key.to_pkcs8_pem(LineEnding::LF),
        };
        pem.map_err(|error| error.to_string())
    }

    fn public_pem(&self) -> Result<String, String> {
        let pem = match self {
            Self::Ed25519(key) => key.verifying_key().to_public_key_pem(LineEnding::LF),
            Self::P256(key) => key.public_key().to_public_key_pem(LineEnding::LF),
            Self::P384(key) => key.public_key().to_public_key_pem(LineEnding::LF),
            Self::Rsa(key) => key.to_public_key().to_public_key_pem(LineEnding::LF),
        };
        pem.map_err(|error| error.to_string())
    }

    /// What makes out the public half, in the order of names that a thumbprint wants.
    fn members(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let point = |curve: &str, sec1: &[u8]| {
            // Without compression: a byte, then both coordinates.
            let (x, y) = sec1[1..].split_at((sec1.len() - 1) / 2);
            json!({"crv": curve, "kty": "EC", "x": text(x), "y": text(y)})
        };
        match self {
            Self::Ed25519(key) => {
                json!({"crv": "Ed25519", "kty": "OKP", "x": text(key.verifying_key().as_bytes())})
            }
            Self::P256(key) => point("P-256", key.public_key().to_encoded_point(false).as_bytes()),
            Self::P384(key) => point("P-384", key.public_key().to_encoded_point(false).as_bytes()),
            Self::Rsa(key) => {
                json!({"e": text(&key.e().to_bytes_be()), "kty": "RSA", "n": text(&key.n().to_bytes_be())})
            }
        }
    }

    /// The key's name in its key set: its thumbprint by RFC 7638.
    pub(super) fn id(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.members().to_string()))
    }

    /// The public half for a key set.
    fn jwk(&self) -> Value {
        let mut jwk = self.members();
        jwk["kid"] = self.id().into();
        jwk["use"] = "sig".into();
        // An RSA key is good for several.
        if let [algorithm] = self.algorithms() {
            jwk["alg"] = format!("{algorithm:?}").into();
        }
        jwk
    }
}
