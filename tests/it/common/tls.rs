//! Clients for the encrypted transports, and authorities and certificates for tests.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::exchange::framed;
use callsign::server::encrypted::{ListenUrl, Transport};
use http_body_util::{BodyExt, Full};
use hyper::body::{Buf, Bytes};
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Timeout of each operation.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The DNS name in certificates of servers.
pub const NAME: &str = "dns.example";

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![NAME.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = params(name);
        params.subject_alt_names.clear();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    pub fn issue(&self, name: &str) -> Pair {
        self.issue_for(name, 2020..2090)
    }

    /// Issues a certificate that is valid between the first days of these years.
    pub fn issue_for(&self, name: &str, years: std::ops::Range<i32>) -> Pair {
        let mut params = params(name);
        (params.not_before, params.not_after) = (date_time_ymd(years.start, 1, 1), date_time_ymd(years.end, 1, 1));
        self.sign(params)
    }

    /// Issues a certificate that expires at `end`, in seconds since the Unix epoch.
    pub fn issue_until(&self, name: &str, end: u64) -> Pair {
        let mut params = params(name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(end);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        Pair { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }
}

impl Pair {
    /// Writes both into a folder, under the file names of cert-manager.
    pub fn write(&self, folder: &Path) {
        std::fs::write(folder.join("tls.crt"), &self.certificate).unwrap();
        std::fs::write(folder.join("tls.key"), &self.key).unwrap();
    }

    /// Returns the certificate in DER, as clients receive it.
    pub fn der(&self) -> Vec<u8> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap().to_vec()
    }
}

/// The authority that a client trusts, and its own certificate.
#[derive(Clone)]
pub struct Trust {
    pub authority: String,
    pub identity: Option<Pair>,
}

impl Trust {
    pub fn config(&self, protocol: Option<&str>) -> rustls::ClientConfig {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.unwrap().with_root_certificates(roots);
        let mut config = match &self.identity {
            None => config.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes()).map(Result::unwrap).collect();
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                config.with_client_auth_cert(chain, key).unwrap()
            }
        };
        config.alpn_protocols = protocol.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
        config
    }
}

/// A client with one connection.
pub enum Client {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
    Quic(quinn::Endpoint, quinn::Connection),
    H3(quinn::Endpoint, quinn::Connection, h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>),
}

async fn with_timeout<T, E: Into<BoxError>>(future: impl Future<Output = Result<T, E>>) -> Result<T, BoxError> {
    timeout(TIMEOUT, future).await.map_err(|_| BoxError::from("timed out"))?.map_err(Into::into)
}

pub async fn tls(address: SocketAddr, config: rustls::ClientConfig) -> Result<TlsStream<TcpStream>, BoxError> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    with_timeout(TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME)?, stream)).await
}

pub async fn quic(
    address: SocketAddr,
    config: rustls::ClientConfig,
) -> Result<(quinn::Endpoint, quinn::Connection), BoxError> {
    let endpoint = quinn::Endpoint::client(if address.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" }.parse()?)?;
    let config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let connection = with_timeout(endpoint.connect_with(config, address, NAME)?).await?;
    Ok((endpoint, connection))
}

impl Client {
    pub async fn tcp(address: SocketAddr) -> Result<Client, BoxError> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Client::Tcp(stream))
    }

    pub async fn connect(to: ListenUrl, trust: &Trust) -> Result<Client, BoxError> {
        match to.transport {
            Transport::Tls => Ok(Client::Tls(Box::new(tls(to.address, trust.config(Some("dot"))).await?))),
            Transport::Https => {
                let stream = TokioIo::new(tls(to.address, trust.config(Some("h2"))).await?);
                let (client, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
                tokio::spawn(connection);
                Ok(Client::Http2(client))
            }
            Transport::Quic => {
                let (endpoint, connection) = quic(to.address, trust.config(Some("doq"))).await?;
                Ok(Client::Quic(endpoint, connection))
            }
            Transport::H3 => {
                let (endpoint, connection) = quic(to.address, trust.config(Some("h3"))).await?;
                let (mut driver, client) = h3::client::new(h3_quinn::Connection::new(connection.clone())).await?;
                tokio::spawn(async move { driver.wait_idle().await });
                Ok(Client::H3(endpoint, connection, client))
            }
        }
    }

    pub async fn http1(address: SocketAddr, trust: &Trust) -> Result<Client, BoxError> {
        let stream = TokioIo::new(tls(address, trust.config(Some("http/1.1"))).await?);
        let (client, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        Ok(Client::Http1(client))
    }

    /// Asks one question and waits for the reply.
    pub async fn ask(&mut self, query: &[u8]) -> Result<Vec<u8>, BoxError> {
        match self {
            Client::Tcp(stream) => with_timeout(ask_stream(stream, query)).await,
            Client::Tls(stream) => with_timeout(ask_stream(stream, query)).await,
            Client::Quic(_, connection) => ask_quic(connection, query).await,
            _ => {
                let request = Request::post(format!("https://{NAME}/dns-query"))
                    .header("content-type", "application/dns-message")
                    .body(Bytes::copy_from_slice(query))?;
                let response = self.request(request).await?;
                match (response.status().as_u16(), response.headers().get("content-type")) {
                    (200, Some(kind)) if kind == "application/dns-message" => Ok(response.into_body().to_vec()),
                    (status, kind) => Err(format!("{status} {kind:?} {:?}", response.body()).into()),
                }
            }
        }
    }

    /// Sends an HTTP request and waits for the response.
    pub async fn request(&mut self, request: Request<Bytes>) -> Result<Response<Bytes>, BoxError> {
        let (head, body) = match self {
            Client::Http1(client) => {
                let (mut head, body) = request.into_parts();
                let authority = head.uri.authority().map_or("", |authority| authority.as_str()).parse()?;
                head.headers.insert("host", authority);
                head.uri = head.uri.path_and_query().unwrap().as_str().parse()?;
                with_timeout(client.ready()).await?;
                with_timeout(client.send_request(Request::from_parts(head, Full::new(body)))).await?.into_parts()
            }
            Client::Http2(client) => {
                with_timeout(client.ready()).await?;
                with_timeout(client.send_request(request.map(Full::new))).await?.into_parts()
            }
            Client::H3(_, _, client) => return with_timeout(h3_request(client, request)).await,
            _ => return Err("not an HTTP client".into()),
        };
        let body = with_timeout(body.collect()).await?.to_bytes();
        Ok(Response::from_parts(head, body))
    }
}

async fn h3_request(
    client: &mut h3::client::SendRequest<h3_quinn::OpenStreams, Bytes>,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, BoxError> {
    let (head, body) = request.into_parts();
    let mut stream = client.send_request(Request::from_parts(head, ())).await?;
    // A server that refuses a request need not read it.
    let _ = stream.send_data(body).await;
    let _ = stream.finish().await;
    let response = stream.recv_response().await?;
    let mut body = Vec::new();
    while let Some(mut data) = stream.recv_data().await? {
        body.extend_from_slice(&data.copy_to_bytes(data.remaining()));
    }
    Ok(response.map(|()| body.into()))
}

async fn ask_stream<S: AsyncReadExt + AsyncWriteExt + Unpin>(stream: &mut S, query: &[u8]) -> io::Result<Vec<u8>> {
    stream.write_all(&framed(query)).await?;
    stream.flush().await?;
    let mut reply = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut reply).await?;
    Ok(reply)
}

pub async fn ask_quic(connection: &quinn::Connection, query: &[u8]) -> Result<Vec<u8>, BoxError> {
    let (mut question, mut reply) = with_timeout(connection.open_bi()).await?;
    question.write_all(&framed(query)).await?;
    question.finish()?;
    let octets = with_timeout(reply.read_to_end(65_537)).await?;
    let (length, reply) = octets.split_first_chunk().ok_or("half a frame")?;
    if usize::from(u16::from_be_bytes(*length)) != reply.len() {
        return Err("the length prefix does not match".into());
    }
    Ok(reply.to_vec())
}
