//! What the Node API answers when it does not do what was asked: a Kubernetes Status, as every client of the API server
//! can read.

use axum::Json;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;

use super::super::hypervisor::{HypervisorError, LibvirtErrorKind, chain};

/// Why a request is not done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// The request cannot be understood.
    #[error("{0}")]
    BadRequest(String),
    /// No token, or none that is meant for this host.
    #[error("{0}")]
    Unauthorized(String),
    /// The caller may not do that.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing here.
    #[error("{0}")]
    NotFound(String),
    /// The route has no such method.
    #[error("{0}")]
    MethodNotAllowed(String),
    /// Not in the state that the Instance is in.
    #[error("{0}")]
    Conflict(String),
    /// Too many of the kind are open.
    #[error("{0}")]
    TooManyRequests(String),
    /// libvirt said no, or something that cannot be understood.
    #[error("{0}")]
    Internal(String),
    /// The driver cannot do it.
    #[error("{0}")]
    NotImplemented(String),
    /// Somebody who is needed for the answer is away.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody who is needed did not answer in time.
    #[error("{0}")]
    Timeout(String),
}

impl ApiError {
    /// The HTTP status, and Kubernetes' word for it.
    fn parts(&self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest(_) => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Unauthorized(_) => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden(_) => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::NotFound(_) => (StatusCode::NOT_FOUND, "NotFound"),
            Self::MethodNotAllowed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::Conflict(_) => (StatusCode::CONFLICT, "Conflict"),
            Self::TooManyRequests(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::NotImplemented(_) => (StatusCode::NOT_IMPLEMENTED, "NotImplemented"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        }
    }
}

impl From<HypervisorError> for ApiError {
    fn from(error: HypervisorError) -> Self {
        let text = chain(&error);
        match error {
            HypervisorError::Disconnected { .. } | HypervisorError::Crowded { .. } => Self::Unavailable(text),
            HypervisorError::TimedOut { .. } | HypervisorError::Stuck { .. } => Self::Timeout(text),
            HypervisorError::Unreadable { .. } => Self::Internal(text),
            HypervisorError::Refused { source, .. } => match source.kind {
                // It was looked at a moment ago: it has changed since.
                LibvirtErrorKind::WrongState | LibvirtErrorKind::NoDomain => Self::Conflict(text),
                LibvirtErrorKind::AgentSilent => Self::Timeout(text),
                LibvirtErrorKind::Unsupported => Self::NotImplemented(text),
                LibvirtErrorKind::Connection
                | LibvirtErrorKind::NoMetadata
                | LibvirtErrorKind::NoNetwork
                | LibvirtErrorKind::BadDefinition
                | LibvirtErrorKind::Other => Self::Internal(text),
            },
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (code, reason) = self.parts();
        let status = Status {
            code: Some(i32::from(code.as_u16())),
            message: Some(self.to_string()),
            reason: Some(reason.to_owned()),
            status: Some("Failure".to_owned()),
            ..Status::default()
        };
        let mut response = (code, Json(status)).into_response();
        if code == StatusCode::UNAUTHORIZED {
            let scheme = header::HeaderValue::from_static("Bearer");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::super::hypervisor::LibvirtError;
    use super::*;

    fn refused(kind: LibvirtErrorKind) -> HypervisorError {
        HypervisorError::Refused {
            what: "read",
            domain: "d".into(),
            source: LibvirtError {
                kind,
                message: "no".into(),
            },
        }
    }

    #[test]
    fn libvirts_errors_have_their_codes() {
        let timed_out = HypervisorError::TimedOut {
            what: "read",
            domain: "d".into(),
            after: Duration::from_secs(5),
        };
        let down = HypervisorError::Disconnected {
            uri: "u".into(),
            source: None,
        };
        for (error, code) in [
            (refused(LibvirtErrorKind::WrongState), 409),
            (refused(LibvirtErrorKind::Unsupported), 501),
            (refused(LibvirtErrorKind::AgentSilent), 504),
            (refused(LibvirtErrorKind::Other), 500),
            (timed_out, 504),
            (down, 503),
        ] {
            assert_eq!(ApiError::from(error.clone()).parts().0.as_u16(), code, "{error}");
        }
    }

    #[tokio::test]
    async fn the_body_is_a_kubernetes_status() {
        let response = ApiError::Unauthorized("who are you?".into()).into_response();
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Bearer");
        let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
        let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            status,
            serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "who are you?", "reason": "Unauthorized", "code": 401})
        );
    }
}
