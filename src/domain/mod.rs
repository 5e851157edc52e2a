//! The words of the domain, as types. Pure: no I/O, no clocks, nothing of ours imported.
//!
//! | word | type |
//! | --- | --- |
//! | block, head | [`BlockRef`], [`Header`] |
//! | range | [`BlockRange`] |
//! | gap | [`IntervalSet`] |
//! | safe, finalized, confirmation depth | [`DeliveryMode`], [`Heights`], [`Tag`] |
//! | log | [`RawLog`], [`Topics`], [`Data`] |
//! | event | [`Event`], [`Args`] |
//! | token | [`Token`], [`TokenList`] |

mod block;
mod event;
mod finality;
mod gaps;
mod log;
mod range;
mod token;

pub use block::{BlockRef, Header, MAX_BLOCK_NUMBER, signed};
pub use event::{Args, Digest, Event, Track};
pub use finality::{DeliveryMode, Heights, Tag};
pub use gaps::{IntervalSet, REALTIME_GAP};
pub use log::{Data, RawLog, Topics};
pub use range::BlockRange;
pub use token::{Token, TokenList};
