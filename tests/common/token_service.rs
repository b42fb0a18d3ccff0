//! A token service as registries have one: signed tokens that the real registry believes.

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use super::registry::{Login, self_signed};

/// A question that came.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub scopes: Vec<String>,
    pub authorization: Option<String>,
    /// The form of a POST.
    pub form: Vec<(String, String)>,
}

/// What the service does.
#[derive(Debug, Clone)]
pub struct Behaviour {
    /// `expires_in` of the answer; `None` leaves it out.
    pub expires_in: Option<u64>,
    /// Which `Authorization` is demanded of a GET.
    pub basic: Option<(&'static str, &'static str)>,
    /// The refresh token that a POST must bring.
    pub refresh_token: Option<&'static str>,
    /// How many questions are answered with 503 first.
    pub unavailable: usize,
    /// The name under which the token stands in the answer.
    pub field: &'static str,
}

impl Default for Behaviour {
    fn default() -> Self {
        Self { expires_in: Some(300), basic: None, refresh_token: None, unavailable: 0, field: "token" }
    }
}

struct Shared {
    behaviour: Mutex<Behaviour>,
    asked: Mutex<Vec<Asked>>,
    key: KeyPair,
    certificate: String,
    issued: std::sync::atomic::AtomicU64,
}

/// A running service.
pub struct TokenService {
    shared: Arc<Shared>,
    realm: String,
    folder: tempfile::TempDir,
    task: tokio::task::JoinHandle<()>,
}

const ISSUER: &str = "test-issuer";

impl TokenService {
    pub async fn start(behaviour: Behaviour) -> Self {
        let folder = tempfile::tempdir().expect("temp folder");
        let (key, certificate) = make_key(folder.path());
        let shared = Arc::new(Shared {
            behaviour: Mutex::new(behaviour),
            asked: Mutex::default(),
            key,
            certificate,
            issued: Default::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let realm = format!("http://{}/token", listener.local_addr().expect("address"));
        let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            let _ = axum::serve(listener, app).await;
        });
        Self { shared, realm, folder, task }
    }

    /// The login with which a registry believes this service.
    pub fn login(&self) -> Login {
        Login::Token {
            realm: self.realm.clone(),
            issuer: ISSUER.to_owned(),
            certificate: self.folder.path().join("certificate.pem"),
        }
    }

    pub fn realm(&self) -> &str {
        &self.realm
    }

    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.shared.behaviour.lock().unwrap());
    }

    /// The questions so far; they are forgotten.
    pub fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

impl Drop for TokenService {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A key and its self-signed certificate, made by openssl.
fn make_key(folder: &std::path::Path) -> (KeyPair, String) {
    let (key, certificate) = self_signed(folder);
    let der = folder.join("key.der");
    let converted = std::process::Command::new("openssl")
        .args(["pkcs8", "-topk8", "-nocrypt", "-in", &key, "-outform", "DER", "-out"])
        .arg(&der)
        .status();
    assert!(converted.expect("openssl").success());
    let pair = KeyPair::from_pkcs8(&std::fs::read(der).unwrap()).expect("key");
    let pem = std::fs::read_to_string(certificate).unwrap();
    (pair, pem.lines().filter(|line| !line.starts_with("-----")).collect())
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let asked = read(request).await;
    shared.asked.lock().unwrap().push(asked.clone());
    let behaviour = {
        let mut behaviour = shared.behaviour.lock().unwrap();
        let before = behaviour.clone();
        behaviour.unavailable = behaviour.unavailable.saturating_sub(1);
        before
    };
    if behaviour.unavailable > 0 {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    if !allowed(&behaviour, &asked) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    let mut body = json!({behaviour.field: token(&shared, &asked.scopes)});
    if let Some(seconds) = behaviour.expires_in {
        body["expires_in"] = json!(seconds);
    }
    ([("content-type", "application/json")], body.to_string()).into_response()
}

async fn read(request: Request) -> Asked {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 16).await.unwrap_or_default();
    let decode =
        |text: &[u8]| -> Vec<(String, String)> { url::form_urlencoded::parse(text).into_owned().collect() };
    let form = decode(&body);
    let mut scopes = decode(parts.uri.query().unwrap_or("").as_bytes());
    scopes.extend(form.iter().cloned());
    Asked {
        method: parts.method.to_string(),
        scopes: scopes.into_iter().filter(|(key, _)| key == "scope").map(|(_, value)| value).collect(),
        authorization: parts.headers.get("authorization").map(|v| v.to_str().unwrap_or("").to_owned()),
        form,
    }
}

fn allowed(behaviour: &Behaviour, asked: &Asked) -> bool {
    if asked.method == "POST" {
        let brought = asked.form.iter().find(|(key, _)| key == "refresh_token").map(|(_, v)| v.as_str());
        return brought.is_some() && brought == behaviour.refresh_token;
    }
    let wanted = behaviour
        .basic
        .map(|(name, password)| format!("Basic {}", STANDARD.encode(format!("{name}:{password}"))));
    wanted.is_none() || wanted == asked.authorization
}

/// A JWT for the scopes (distribution `docs/content/spec/auth/jwt.md`).
fn token(shared: &Shared, scopes: &[String]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let access: Vec<Value> = scopes
        .iter()
        .filter_map(|scope| {
            let mut words = scope.splitn(3, ':');
            let (kind, name, actions) = (words.next()?, words.next()?, words.next()?);
            Some(json!({"type": kind, "name": name, "actions": actions.split(',').collect::<Vec<_>>()}))
        })
        .collect();
    let number = shared.issued.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let claims = json!({
        "iss": ISSUER, "sub": "", "aud": "test-registry", "exp": now + 600, "nbf": now - 60, "iat": now - 60,
        "jti": format!("token-{number}"), "access": access,
    });
    let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [shared.certificate]});
    let encode = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let text = format!("{}.{}", encode(&header), encode(&claims));
    let mut signature = vec![0; shared.key.public_modulus_len()];
    shared.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).expect("sign");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}
