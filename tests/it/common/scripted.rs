//! A scripted API server that speaks the real HTTP protocol: list pages, watches with bookmarks, streamed lists, 410 as an
//! event and as a status, resets, silence, slow bodies, and responses that no API server should send.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};

/// A fault that replaces the response to one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// A status and its reason as JSON, or an HTML body.
    Status(u16, String),
    /// A status with Retry-After.
    RetryAfter(u16, u64),
    /// 200 and half an event, then the connection breaks.
    Reset,
    /// 200, then no data.
    Silence,
    /// 200 and an ERROR event with this code.
    ErrorEvent(u16),
    /// 200 and this body.
    Body(String),
}

/// How the server handles `sendInitialEvents`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchListSupport {
    /// It supports streamed lists.
    Yes,
    /// It rejects the parameter with 422.
    Refused,
    /// It ignores the parameter and treats the request as a plain watch.
    Unknown,
}

/// A change, with its watch event, which is serialized once for all watches.
struct HistoryEntry {
    version: u64,
    resource: String,
    object: Arc<Value>,
    event: Bytes,
}

struct State {
    objects: BTreeMap<(String, String), Arc<Value>>,
    version: u64,
    history: Vec<HistoryEntry>,
    compacted: u64,
    streams: WatchListSupport,
    gone_as_event: bool,
    faults: VecDeque<(String, Fault)>,
    requests: Vec<String>,
    /// Bumped to break every open watch.
    epoch: u64,
    /// Bumped to end every open watch.
    ends: u64,
    slow: Option<Duration>,
}

/// The scripted API server.
pub struct Api {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
}

struct Stream(mpsc::Receiver<Result<Bytes, std::io::Error>>);

/// Octets of all bodies sent so far, by all servers of this process.
static OCTETS: AtomicU64 = AtomicU64::new(0);

fn sent(octets: &Bytes) {
    OCTETS.fetch_add(octets.len() as u64, Ordering::Relaxed);
}

impl Body for Stream {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, std::io::Error>>> {
        self.0.poll_recv(context).map(|item| item.map(|item| item.inspect(sent).map(Frame::data)))
    }
}

type ApiResponse = Response<Either<Full<Bytes>, Stream>>;

impl Api {
    pub fn start(streams: WatchListSupport) -> Api {
        let state = State {
            objects: BTreeMap::new(),
            version: 100,
            history: Vec::new(),
            compacted: 0,
            streams,
            gone_as_event: false,
            faults: VecDeque::new(),
            requests: Vec::new(),
            epoch: 0,
            ends: 0,
            slow: None,
        };
        let mut api = Api {
            state: Arc::new(Mutex::new(state)),
            changed: watch::Sender::new(0),
            address: "127.0.0.1:0".parse().unwrap(),
            runtime: None,
        };
        api.resume();
        api
    }

    /// Starts to serve, on its previous address if it had one.
    pub fn resume(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(async {
            loop {
                let socket = tokio::net::TcpSocket::new_v4().unwrap();
                socket.set_reuseaddr(true).unwrap();
                if socket.bind(self.address).is_ok() {
                    break socket.listen(64).unwrap();
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        self.address = listener.local_addr().unwrap();
        let (state, changed) = (self.state.clone(), self.changed.clone());
        runtime.spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                // As API servers do, so that a small event does not wait for the previous acknowledgement.
                stream.set_nodelay(true).unwrap();
                let (state, changed) = (state.clone(), changed.clone());
                tokio::spawn(async move {
                    let service = service_fn(|request| respond(request, state.clone(), changed.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        self.runtime = Some(runtime);
    }

    /// Stops the server and breaks every connection.
    pub fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(1));
    }

    /// Returns a kubeconfig for this server.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: it\nclusters: [{{name: it, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: it, user: {{}}}}]\ncontexts: [{{name: it, context: {{cluster: it, user: it}}}}]\n",
            self.address
        )
    }

    fn with<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        let value = with(&mut self.state.lock().unwrap());
        self.changed.send_modify(|turn| *turn += 1);
        value
    }

    /// Creates or replaces an object; returns its version.
    pub fn put(&self, object: Value) -> u64 {
        self.with(|state| state.put(object))
    }

    /// Deletes an object; returns whether it existed.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str) -> bool {
        self.with(|state| state.delete(resource, namespace, name))
    }

    /// Drops the history, so that watches from earlier versions get 410.
    pub fn compact(&self) {
        self.with(|state| {
            state.compacted = state.version;
            state.history.clear();
        });
    }

    /// Reports 410 to a watch as an event instead of a status.
    pub fn gone_as_event(&self, yes: bool) {
        self.with(|state| state.gone_as_event = yes);
    }

    /// Applies the fault to the next request for `resource`.
    pub fn fault(&self, resource: &str, fault: Fault) {
        self.with(|state| state.faults.push_back((resource.to_owned(), fault)));
    }

    pub fn faults_left(&self) -> usize {
        self.with(|state| state.faults.len())
    }

    /// Breaks every open watch.
    pub fn break_watches(&self) {
        self.with(|state| state.epoch += 1);
    }

    /// Ends every open watch cleanly.
    pub fn end_watches(&self) {
        self.with(|state| state.ends += 1);
    }

    /// Creates or replaces an object without an event for it.
    pub fn put_silently(&self, object: Value) {
        self.with(|state| {
            state.put(object);
            state.history.pop();
        });
    }

    /// Sends list bodies in two halves, with this pause between them.
    pub fn slow(&self, pause: Option<Duration>) {
        self.with(|state| state.slow = pause);
    }

    /// Resets the version, as a restore of etcd does.
    pub fn restore(&self, version: u64) {
        self.with(|state| {
            state.version = version;
            state.history.clear();
            state.compacted = 0;
            state.epoch += 1;
        });
    }

    /// Octets of all bodies sent so far.
    pub fn octets(&self) -> u64 {
        OCTETS.load(Ordering::Relaxed)
    }

    /// Path and query of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.with(|state| state.requests.clone())
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Kind and API version of a resource's objects.
fn kind_of(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "services" => ("Service", "v1"),
        "endpointslices" => ("EndpointSlice", "discovery.k8s.io/v1"),
        "namespaces" => ("Namespace", "v1"),
        _ => ("Pod", "v1"),
    }
}

pub fn resource_of(kind: &str) -> &'static str {
    match kind {
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "Namespace" => "namespaces",
        "Pod" => "pods",
        other => panic!("unknown kind {other}"),
    }
}

fn key(resource: &str, namespace: &str, name: &str) -> (String, String) {
    let namespace = if resource == "namespaces" { "" } else { namespace };
    (resource.to_owned(), format!("{namespace}/{name}"))
}

impl State {
    fn put(&mut self, mut object: Value) -> u64 {
        self.version += 1;
        let resource = resource_of(object["kind"].as_str().unwrap());
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
        if resource != "namespaces" {
            object["metadata"]["namespace"] = namespace.as_str().into();
        }
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let object = Arc::new(object);
        let old = self.objects.insert(key(resource, &namespace, &name), object.clone());
        self.happened(resource, if old.is_some() { "MODIFIED" } else { "ADDED" }, object);
        self.version
    }

    fn delete(&mut self, resource: &str, namespace: &str, name: &str) -> bool {
        let Some(object) = self.objects.remove(&key(resource, namespace, name)) else { return false };
        let mut object = Arc::unwrap_or_clone(object);
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.happened(resource, "DELETED", Arc::new(object));
        true
    }

    fn happened(&mut self, resource: &str, kind: &'static str, object: Arc<Value>) {
        let event = event(kind, &object);
        self.history.push(HistoryEntry { version: self.version, resource: resource.to_owned(), object, event });
    }

    fn all(&self, resource: &str, scope: &Scope) -> Vec<&Value> {
        let all = self.objects.iter().filter(|((of, _), _)| of == resource).map(|(_, object)| &**object);
        all.filter(|object| scope.contains(object)).collect()
    }
}

/// What a request asks for: objects of one namespace, of one node, or all.
struct Scope {
    namespace: Option<String>,
    node: Option<String>,
}

impl Scope {
    fn of(namespace: &str, query: &BTreeMap<String, String>) -> Scope {
        let node = query.get("fieldSelector").and_then(|selector| selector.strip_prefix("spec.nodeName="));
        let namespace = Some(namespace).filter(|namespace| !namespace.is_empty());
        Scope { namespace: namespace.map(str::to_owned), node: node.map(str::to_owned) }
    }

    fn contains(&self, object: &Value) -> bool {
        self.namespace.as_ref().is_none_or(|namespace| object["metadata"]["namespace"] == **namespace)
            && self.node.as_ref().is_none_or(|node| object["spec"]["nodeName"] == **node)
    }
}

fn status(code: u16, reason: &str, message: &str) -> ApiResponse {
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": code});
    full_response(code, "application/json", body.to_string())
}

fn full_response(code: u16, kind: &str, body: String) -> ApiResponse {
    let body = Bytes::from(body);
    sent(&body);
    Response::builder().status(code).header("content-type", kind).body(Either::Left(Full::new(body))).unwrap()
}

fn gone() -> ApiResponse {
    status(410, "Expired", "too old resource version")
}

fn event(kind: &str, object: &Value) -> Bytes {
    format!("{{\"type\":\"{kind}\",\"object\":{object}}}\n").into()
}

async fn respond(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
) -> Result<ApiResponse, Infallible> {
    let path = request.uri().path().to_owned();
    let query = form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes());
    let query: BTreeMap<String, String> = query.into_owned().collect();
    let segments: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let segments = match segments.as_slice() {
        ["api", "v1", rest @ ..] | ["apis", "discovery.k8s.io", "v1", rest @ ..] => rest,
        _ => return Ok(status(404, "NotFound", "no such path")),
    };
    let (namespace, resource, name) = match *segments {
        ["namespaces", namespace, resource] => (namespace, resource, None),
        ["namespaces", namespace, resource, name] => (namespace, resource, Some(name)),
        [resource] => ("", resource, None),
        ["namespaces", name] => ("", "namespaces", Some(name)),
        _ => return Ok(status(404, "NotFound", "no such path")),
    };
    if *request.method() != Method::GET {
        let method = request.method().clone();
        let (namespace, resource, name) = (namespace.to_owned(), resource.to_owned(), name.map(str::to_owned));
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut held = state.lock().unwrap();
        let answer = match (method, name) {
            (Method::DELETE, Some(name)) => match held.delete(&resource, &namespace, &name) {
                true => {
                    full_response(200, "application/json", json!({"kind": "Status", "status": "Success"}).to_string())
                }
                false => status(404, "NotFound", "no such object"),
            },
            (Method::POST | Method::PUT, _) => {
                let mut object: Value = serde_json::from_slice(&body).unwrap();
                if !namespace.is_empty() {
                    object["metadata"]["namespace"] = namespace.into();
                }
                held.put(object.clone());
                full_response(201, "application/json", object.to_string())
            }
            _ => status(405, "MethodNotAllowed", "method not allowed"),
        };
        drop(held);
        changed.send_modify(|turn| *turn += 1);
        return Ok(answer);
    }
    let accept = request.headers().get("accept").and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let is_metadata = accept.contains("as=PartialObjectMetadataList");
    let fault = {
        let mut held = state.lock().unwrap();
        held.requests.push(request.uri().to_string());
        let at = held.faults.iter().position(|(of, _)| of == resource);
        at.and_then(|at| held.faults.remove(at)).map(|(_, fault)| fault)
    };
    Ok(match fault {
        Some(fault) => fault_response(fault),
        None if query.get("watch").is_some_and(|watch| watch == "true" || watch == "1") => {
            watch_response(resource, Scope::of(namespace, &query), &query, state, changed.subscribe())
        }
        None => list_response(resource, &Scope::of(namespace, &query), &query, is_metadata, &state),
    })
}

fn fault_response(fault: Fault) -> ApiResponse {
    let stream = |first: Option<Bytes>, then: Option<std::io::Error>| {
        let (send, receive) = mpsc::channel(2);
        tokio::spawn(async move {
            if let Some(first) = first {
                let _ = send.send(Ok(first)).await;
            }
            match then {
                Some(error) => drop(send.send(Err(error)).await),
                None => send.closed().await,
            }
        });
        Response::builder().header("content-type", "application/json").body(Either::Right(Stream(receive))).unwrap()
    };
    match fault {
        Fault::Status(code, body) if body.starts_with('<') => full_response(code, "text/html", body),
        Fault::Status(code, body) => status(code, &body, &body),
        Fault::RetryAfter(code, seconds) => {
            let mut answer = status(code, "TooManyRequests", "too many requests, please try again later");
            answer.headers_mut().insert("retry-after", seconds.into());
            answer
        }
        Fault::Reset => stream(Some("{\"type\": \"ADDED\", \"obj".into()), Some(std::io::Error::other("reset"))),
        Fault::Silence => stream(None, None),
        Fault::ErrorEvent(code) => {
            let object = json!({"kind": "Status", "status": "Failure", "message": "something broke", "reason": "InternalError", "code": code});
            full_response(200, "application/json", format!("{}\n", json!({"type": "ERROR", "object": object})))
        }
        Fault::Body(body) => full_response(200, "application/json", body),
    }
}

fn list_response(
    resource: &str,
    scope: &Scope,
    query: &BTreeMap<String, String>,
    is_metadata: bool,
    state: &Mutex<State>,
) -> ApiResponse {
    let held = state.lock().unwrap();
    let limit: usize = query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(usize::MAX);
    // A continue token holds the version of its list and the last name sent.
    let token = query
        .get("continue")
        .and_then(|token| token.split_once(':'))
        .map(|(version, from)| (version.parse::<u64>().unwrap(), from.to_owned()));
    if token.as_ref().is_some_and(|(version, _)| *version < held.compacted) {
        return gone();
    }
    let all = held.all(resource, scope);
    let name = |object: &Value| {
        format!(
            "{}/{}",
            object["metadata"]["namespace"].as_str().unwrap_or_default(),
            object["metadata"]["name"].as_str().unwrap()
        )
    };
    let rest: Vec<&Value> =
        all.into_iter().filter(|object| token.as_ref().is_none_or(|(_, from)| name(object) > *from)).collect();
    let page: Vec<&Value> = rest.iter().take(limit).copied().collect();
    let version = token.map_or(held.version, |(version, _)| version);
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if page.len() < rest.len() {
        metadata["continue"] = format!("{version}:{}", name(page.last().unwrap())).into();
    }
    let (kind, group) = kind_of(resource);
    let body = if is_metadata {
        let items: Vec<Value> = page.iter().map(|object| json!({"metadata": object["metadata"]})).collect();
        json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items})
    } else {
        json!({"kind": format!("{kind}List"), "apiVersion": group, "metadata": metadata, "items": page})
    };
    let body = body.to_string();
    match held.slow {
        None => full_response(200, "application/json", body),
        Some(pause) => {
            let (send, receive) = mpsc::channel(2);
            tokio::spawn(async move {
                let (first, second) = body.split_at(body.len() / 2);
                let _ = send.send(Ok(first.to_owned().into())).await;
                tokio::time::sleep(pause).await;
                let _ = send.send(Ok(second.to_owned().into())).await;
            });
            Response::builder().header("content-type", "application/json").body(Either::Right(Stream(receive))).unwrap()
        }
    }
}

fn watch_response(
    resource: &str,
    scope: Scope,
    query: &BTreeMap<String, String>,
    state: Arc<Mutex<State>>,
    mut changed: watch::Receiver<u64>,
) -> ApiResponse {
    let resource = resource.to_owned();
    let initial = query.get("sendInitialEvents").is_some_and(|yes| yes == "true");
    let (kind, group) = kind_of(&resource);
    let bookmark = move |version: u64, annotations: Value| {
        let metadata = json!({"resourceVersion": version.to_string(), "annotations": annotations});
        event("BOOKMARK", &json!({"kind": kind, "apiVersion": group, "metadata": metadata}))
    };
    let seconds: u64 = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(300);
    let (mut from, epoch, ends, first) = {
        let held = state.lock().unwrap();
        let mut first = Vec::new();
        let from = match query.get("resourceVersion").and_then(|version| version.parse::<u64>().ok()) {
            _ if initial && held.streams == WatchListSupport::Refused => {
                return status(
                    422,
                    "Invalid",
                    "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled",
                );
            }
            _ if initial && held.streams == WatchListSupport::Yes => {
                first.extend(held.all(&resource, &scope).into_iter().map(|object| event("ADDED", object)));
                first.push(bookmark(held.version, json!({"k8s.io/initial-events-end": "true"})));
                held.version
            }
            Some(version) if version < held.compacted && held.gone_as_event => {
                let object =
                    json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
                return full_response(
                    200,
                    "application/json",
                    format!("{}\n", json!({"type": "ERROR", "object": object})),
                );
            }
            Some(version) if version < held.compacted => return gone(),
            Some(version) if version > held.version => {
                return status(
                    504,
                    "Timeout",
                    &format!("Too large resource version: {version}, current: {}", held.version),
                );
            }
            Some(version) => version,
            None => held.version,
        };
        (from, held.epoch, held.ends, first)
    };
    let (send, receive) = mpsc::channel(64);
    tokio::spawn(async move {
        for event in first {
            if send.send(Ok(event)).await.is_err() {
                return;
            }
        }
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        loop {
            let (events, broken, ended, version) = {
                let held = state.lock().unwrap();
                let unseen = held.history.partition_point(|past| past.version <= from);
                let new = held.history[unseen..]
                    .iter()
                    .filter(|past| past.resource == resource && scope.contains(&past.object));
                let events: Vec<Bytes> = new.map(|past| past.event.clone()).collect();
                (events, held.epoch != epoch, held.ends != ends, held.version)
            };
            if broken {
                let _ = send.send(Err(std::io::Error::other("broken"))).await;
                return;
            }
            for event in events {
                if send.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            from = from.max(version);
            if ended {
                return;
            }
            tokio::select! {
                changed = changed.changed() => if changed.is_err() { return },
                () = send.closed() => return,
                () = tokio::time::sleep(Duration::from_secs(5)) => {
                    if send.send(Ok(bookmark(from, json!({})))).await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(end) => return,
            }
        }
    });
    Response::builder().header("content-type", "application/json").body(Either::Right(Stream(receive))).unwrap()
}
