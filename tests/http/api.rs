//! A client that believes nothing: each answer must be one that the daemon's own OpenAPI document promises.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::{Client, Method};
use serde_json::{Value, json};

use crate::common::session::Session;

/// When an answer counts as hung.
const HUNG: Duration = Duration::from_secs(60);

/// An answer, checked.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) text: String,
}

impl Answer {
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// Status and code of a refusal; the code is null where there is none.
    #[track_caller]
    pub(crate) fn refusal(&self) -> (u16, Value) {
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        (self.status, self.json()["code"].clone())
    }

    #[track_caller]
    pub(crate) fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        if self.text.is_empty() { Value::Null } else { self.json() }
    }
}

pub(crate) struct Api {
    runtime: tokio::runtime::Runtime,
    client: Client,
    base: String,
    token: Option<String>,
    document: Value,
    /// Operations that were asked for: method, path of the document.
    pub(crate) asked: RefCell<BTreeSet<(String, String)>>,
}

impl Api {
    /// Over the daemon's socket.
    pub(crate) fn of(s: &Session) -> Self {
        let socket = s.status()["http"]["socket"].as_str().unwrap().to_owned();
        Self::new(Client::builder().unix_socket(std::path::PathBuf::from(socket)), "http://addonfs", None)
    }

    /// Over TCP.
    pub(crate) fn tcp(s: &Session, token: Option<&str>) -> Self {
        let address = s.status()["http"]["listen"].as_str().unwrap().to_owned();
        Self::new(Client::builder(), &format!("http://{address}"), token)
    }

    fn new(client: reqwest::ClientBuilder, base: &str, token: Option<&str>) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let client = client.no_proxy().build().unwrap();
        let answer = runtime.block_on(async {
            client.get(format!("{base}/openapi.json")).send().await.unwrap().bytes().await.unwrap()
        });
        let document = serde_json::from_slice(&answer).unwrap();
        Self {
            runtime,
            client,
            base: base.to_owned(),
            token: token.map(str::to_owned),
            document,
            asked: RefCell::default(),
        }
    }

    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], None)
    }

    #[track_caller]
    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", path, &[], Some(&body.to_string()))
    }

    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        self.ask("DELETE", path, &[], None)
    }

    /// One request and its whole answer.
    #[track_caller]
    pub(crate) fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let answer = self.runtime.block_on(async {
            let response = self.request(method, path, headers, body).await;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let bytes = tokio::time::timeout(HUNG, response.bytes()).await.expect("an answer").unwrap();
            Answer { status, headers, text: String::from_utf8(bytes.to_vec()).unwrap() }
        });
        self.check(method, path, &answer);
        answer
    }

    /// The beginning of an answer that goes on, until `enough` of it is there.
    #[track_caller]
    pub(crate) fn stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        mut enough: impl FnMut(&str) -> bool,
    ) -> Answer {
        let answer = self.runtime.block_on(async {
            let mut response = self.request("GET", path, headers, None).await;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let mut text = String::new();
            let read = async {
                while let Some(piece) = response.chunk().await.unwrap() {
                    text.push_str(std::str::from_utf8(&piece).unwrap());
                    if enough(&text) {
                        break;
                    }
                }
            };
            assert!(tokio::time::timeout(HUNG, read).await.is_ok(), "{path} hangs after {text}");
            Answer { status, headers, text }
        });
        self.check("GET", path, &answer);
        answer
    }

    async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&str>,
    ) -> reqwest::Response {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        tokio::time::timeout(HUNG, request.send()).await.expect("a head").unwrap()
    }

    /// Operations of the document, with their scopes.
    pub(crate) fn operations(&self) -> Vec<(String, String, Vec<String>)> {
        let mut all = Vec::new();
        for (path, methods) in self.document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                let scopes = operation["x-scopes"].as_array().cloned().unwrap_or_default();
                let scopes = scopes.iter().map(|scope| scope.as_str().unwrap().to_owned()).collect();
                all.push((method.to_uppercase(), path.clone(), scopes));
            }
        }
        all
    }

    /// Whether the document promises such an answer.
    #[track_caller]
    fn check(&self, method: &str, path: &str, answer: &Answer) {
        let bare = path.split('?').next().unwrap();
        let bare = bare.strip_prefix("/api/v1").unwrap_or(bare);
        let paths = self.document["paths"].as_object().unwrap();
        let template =
            paths.keys().filter(|template| fits(template, bare)).max_by_key(|template| template.len());
        let operation = template.and_then(|template| paths[template].get(method.to_lowercase()));
        let (Some(template), Some(operation)) = (template, operation) else {
            assert!([404, 405].contains(&answer.status), "{method} {path} is not told of: {answer:?}");
            assert!(
                answer.status == 404 || answer.header("allow").is_some() || bare.contains('{'),
                "{answer:?}"
            );
            return self.valid(&json!({"$ref": "#/components/schemas/Problem"}), answer);
        };
        self.asked.borrow_mut().insert((method.to_owned(), template.clone()));
        let promised = &operation["responses"][answer.status.to_string()];
        assert!(promised.is_object(), "{method} {template} promises no {}: {answer:?}", answer.status);
        assert_eq!(answer.header("cache-control"), Some("no-store"), "{answer:?}");
        for name in promised["headers"].as_object().into_iter().flat_map(|headers| headers.keys()) {
            let replay = name == "Idempotent-Replay";
            assert!(replay || answer.header(name).is_some(), "{method} {template}: no {name}: {answer:?}");
        }
        let Some(content) = promised["content"].as_object() else {
            assert_eq!(answer.text, "", "{method} {template}");
            return;
        };
        let kind = answer.header("content-type").unwrap_or_else(|| panic!("no content type: {answer:?}"));
        let media =
            content.get(kind).unwrap_or_else(|| panic!("{method} {template} promises no {kind}: {answer:?}"));
        if kind.contains("json") && !kind.contains("ndjson") {
            self.valid(&media["schema"], answer);
        }
    }

    #[track_caller]
    fn valid(&self, schema: &Value, answer: &Answer) {
        self.valid_as(schema, &answer.json());
    }

    /// Whether a value is what a schema of the document says.
    #[track_caller]
    pub(crate) fn valid_as(&self, schema: &Value, value: &Value) {
        let mut whole = schema.clone();
        whole["components"] = self.document["components"].clone();
        let validator = jsonschema::validator_for(&whole).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{}: {e}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{errors:?}\n{value:#}");
    }
}

/// Whether a path is of a template: `{id}` is one element, a job's id several; a verb belongs to the template.
fn fits(template: &str, path: &str) -> bool {
    if let Some(rest) = template.strip_suffix("{id}").filter(|rest| *rest == "/jobs/") {
        return path.len() > rest.len() && path.starts_with(rest);
    }
    let (wanted, found): (Vec<&str>, Vec<&str>) = (template.split('/').collect(), path.split('/').collect());
    wanted.len() == found.len()
        && wanted.iter().zip(found).all(|(wanted, found)| match wanted.split_once('}') {
            Some((_, verb)) => found.ends_with(verb) && (verb.is_empty() != found.contains(':')),
            None => *wanted == found,
        })
}

/// The events of a stream: id, kind, data.
pub(crate) fn events(text: &str) -> Vec<(u64, String, Value)> {
    let blocks = text.split("\n\n").filter(|block| block.starts_with("id: "));
    blocks
        .filter_map(|block| {
            let line = |name: &str| block.lines().find_map(|line| line.strip_prefix(name));
            let data = serde_json::from_str(line("data: ")?).ok()?;
            Some((line("id: ")?.parse().ok()?, line("event: ")?.to_owned(), data))
        })
        .collect()
}
