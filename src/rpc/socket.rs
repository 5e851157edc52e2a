//! A WebSocket to a node, from when it opens until it ends.
//!
//! It is never opened again behind the back of who uses it, as alloy would do: another node may stand there by then, which
//! has to prove its chain first (F11); a request that the socket ends of would be sent again and again; and a stream of
//! heads would stay open and say nothing.

use std::time::Duration;

use alloy::{
    pubsub::{ConnectionHandle, PubSubConnect},
    transports::{TransportErrorKind, TransportResult},
};
use tokio::time::timeout;

use super::RpcError;

/// A connection that is made once. With no retries alloy would make it once more.
pub(super) struct Once<C>(pub(super) C);

impl<C: PubSubConnect> PubSubConnect for Once<C> {
    fn is_local(&self) -> bool {
        self.0.is_local()
    }

    async fn connect(&self) -> TransportResult<ConnectionHandle> {
        self.0.connect().await
    }

    async fn try_reconnect(&self) -> TransportResult<ConnectionHandle> {
        Err(TransportErrorKind::non_retryable_str("the socket ended"))
    }
}

/// What opens a socket, within a time limit: where it does not, the node is down or far, whatever it would be asked for.
pub(super) async fn in_time<R>(limit: Duration, opening: impl Future<Output = R>) -> Result<R, RpcError> {
    // Rare, and much larger than whatever waits for it.
    timeout(limit, Box::pin(opening))
        .await
        .map_err(|_| RpcError::Transient("the WebSocket did not open in time".into()))
}
