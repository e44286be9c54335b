//! Responses: JSON, and nothing but JSON, except for the bytes of stored files.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::Serialize;
use serde_json::{Value, json};
use virtshell_crds::Task;

/// What a handler answers with.
pub struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Body,
}

const JSON: &str = "application/json";

impl Answer {
    /// 200 with this body.
    pub fn ok(body: &impl Serialize) -> Self {
        Self::json_stream(Body::from(encode(body)))
    }

    /// `{"<verb>": "success"}`.
    pub fn success(verb: &str) -> Self {
        Self::ok(&json!({verb: "success"}))
    }

    /// `{"<verb>": "in progress", "task": "<uuid>"}`.
    pub fn in_progress(verb: &str, task: &Task) -> Self {
        Self::ok(&json!({verb: "in progress", "task": task.metadata.uid}))
    }

    /// `{"<key>": [...]}`.
    pub fn list(key: &str, items: &[impl Serialize]) -> Self {
        let mut body = encode(&Value::String(key.to_owned()));
        body.insert(0, b'{');
        body.push(b':');
        body.extend(encode(&items));
        body.push(b'}');
        Self::json_stream(Body::from(body))
    }

    /// 200 with a body that is JSON when all of it has come.
    pub const fn json_stream(body: Body) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: JSON,
            body,
        }
    }

    /// 200 with bytes that mean nothing here.
    pub const fn bytes(body: Body) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: "application/octet-stream",
            body,
        }
    }

    /// The same with 201.
    pub fn created(self) -> Self {
        Self {
            status: StatusCode::CREATED,
            ..self
        }
    }

    /// The same with 202.
    pub fn accepted(self) -> Self {
        Self {
            status: StatusCode::ACCEPTED,
            ..self
        }
    }

    /// The response.
    pub fn into_response(self) -> Response<Body> {
        respond(self.status, self.content_type, self.body)
    }
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, body: &Value) -> Response<Body> {
    respond(status, JSON, Body::from(encode(body)))
}

fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn encode(body: &impl Serialize) -> Vec<u8> {
    // The views hold strings, numbers and lists: nothing that JSON cannot say.
    serde_json::to_vec(body).expect("views serialize")
}
