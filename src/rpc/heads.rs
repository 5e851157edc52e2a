//! Signs of new heads over a WebSocket.
//!
//! A subscription is lossy: nodes drop slow readers, replacements of the same height may not be announced, and what was
//! mined while the socket was down is never told. So a sign carries nothing but "look": the head is read anew, and
//! what is missing follows from the state. That is why nothing has to be repaired after a reconnect.

use std::time::Duration;

use alloy::{
    providers::{Provider, ProviderBuilder},
    pubsub::PubSubConnect,
    rpc::client::RpcClient,
    transports::ws::WsConnect,
};
use futures_util::{StreamExt, stream, stream::BoxStream};
use serde_json::value::RawValue;
use tokio::sync::broadcast::error::RecvError;

use super::{
    RpcError,
    error::classify,
    masked::Keys,
    socket::{Once, in_time},
    tap::Tape,
};
use crate::{config::SecretUrl, recording::Event};

/// A new socket with a subscription to `newHeads`. The stream ends when the socket does; the caller decides when to
/// connect again.
pub(super) async fn subscribe(
    url: &SecretUrl,
    limit: Duration,
    tape: Tape,
) -> Result<BoxStream<'static, ()>, RpcError> {
    signs(WsConnect::new(url.expose()), limit, &Keys::of(url), tape).await
}

/// The same over any connection, whose errors may quote these keys.
pub(super) async fn signs(
    connect: impl PubSubConnect,
    limit: Duration,
    keys: &Keys,
    tape: Tape,
) -> Result<BoxStream<'static, ()>, RpcError> {
    let connecting = async {
        let client = RpcClient::connect_pubsub(Once(connect)).await?;
        let provider = ProviderBuilder::new().disable_recommended_fillers().connect_client(client);
        let signs = provider.subscribe::<_, Box<RawValue>>(("newHeads",)).await?.into_raw();
        Ok((provider, signs))
    };
    let told = |mut error| {
        keys.hide_in(&mut error);
        classify(error)
    };
    let connected = in_time(limit, connecting).await.and_then(|connected| connected.map_err(told));
    tape.note(|| connected.as_ref().map_or_else(|error| Event::Refused(error.to_string()), |_| Event::Opened));
    let (provider, signs) = connected?;
    // The provider travels with the stream: dropping it would close the socket.
    let signs = stream::unfold((provider, signs, tape), |(provider, mut signs, tape)| async move {
        match signs.recv().await {
            Ok(head) => tape.note(|| Event::Head(head)),
            // Lagging behind loses signs, not blocks.
            Err(RecvError::Lagged(_)) => {}
            Err(RecvError::Closed) => {
                tape.note(|| Event::Closed);
                return None;
            }
        }
        Some(((), (provider, signs, tape)))
    });
    Ok(signs.boxed())
}
