//! Calling the API in process: the real router over the real program, without a socket.

use std::sync::Arc;

use app::api::auth::{digest, mint_key};
use app::api::{Shell, router};
use app::compose::{App, Ports};
use app::config::Auth;
use axum::Router;
use axum::body::{Body, to_bytes};
use domain::id::KeyId;
use durable::store::{StoreError, api_key};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

use crate::world::{CHAIN, Settings, World, recipient};

pub(crate) struct Api {
    pub(crate) world: World,
    pub(crate) app: Arc<App>,
    router: Router,
}

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Status, code and field of a problem.
    pub(crate) fn problem(&self) -> (u16, String, String) {
        let json = self.json();
        assert_eq!(self.header("content-type"), "application/problem+json", "{json}");
        assert_eq!(json["status"], self.status.as_u16(), "{json}");
        assert_eq!(json["type"], format!("urn:quittance:problem:{}", json["code"].as_str().unwrap()));
        let text = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
        assert!(!text("title").is_empty() && !text("detail").is_empty(), "{json}");
        (self.status.as_u16(), text("code"), text("field"))
    }
}

impl Api {
    pub(crate) async fn open(auth: Auth) -> Self {
        let world = World::stopped(Settings::default()).await;
        Self::over(world, auth).await
    }

    pub(crate) async fn over(world: World, auth: Auth) -> Self {
        let mut config = world.config();
        config.server.auth = auth;
        config.server.public_url = "https://pay.example.com".to_owned();
        config.server.max_body_bytes = 64 * 1024;
        let ports = Ports::system(&config).unwrap();
        let app = App::start(config, ports).await.unwrap();
        let router = router(Shell::new(Arc::clone(&app)));
        Self { world, app, router }
    }

    /// The same database with a new process.
    pub(crate) async fn restart(self) -> Self {
        let Self { world, app, router } = self;
        let auth = app.config.server.auth;
        app.stop().await;
        drop(router);
        drop(app);
        Self::over(world, auth).await
    }

    pub(crate) async fn send(&self, request: Request<Body>) -> http::Response<Body> {
        self.router.clone().oneshot(request).await.unwrap()
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.send(request.body(body.into()).unwrap()).await;
        let (parts, body) = response.into_parts();
        let body = to_bytes(body, usize::MAX).await.unwrap().to_vec();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, &[], Body::empty()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call(Method::POST, path, &[("content-type", "application/json")], body.to_string()).await
    }

    pub(crate) async fn post_once(&self, path: &str, key: &str, body: &str) -> Answer {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        self.call(Method::POST, path, &headers, body.to_owned()).await
    }

    /// A key with this scope, kept by the store.
    pub(crate) async fn key(&self, scope: &str) -> (String, KeyId) {
        let key = mint_key(&self.app.chance);
        let (digest, scopes, name) = (digest(&key), vec![scope.to_owned()], scope.to_owned());
        let row: Result<_, StoreError> =
            self.app.store.write(move |tx| api_key::insert(tx, &name, &scopes, &digest)).await;
        (format!("Bearer {}", *key), row.unwrap().id)
    }
}

/// A body that is accepted.
pub(crate) fn invoice(number: u8) -> Value {
    json!({
        "chain": CHAIN.to_string(), "asset": "DUSD", "amount": "2500000",
        "recipient": recipient(number).to_string(), "expires_in": 3600,
    })
}
