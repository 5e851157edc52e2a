//! What events are filtered with, and the re-scans that a change of it asks for.

use std::collections::BTreeMap;

use super::books::{Books, Truth};
use crate::{
    domain::{BlockRange, signed},
    store::{Duty, Publication, PublishReply, StoreError},
};

/// `PUBLISH_FILTER`.
pub(super) fn publish(
    books: &mut Books<'_>,
    truth: &mut Truth,
    publication: &Publication<'_>,
) -> Result<PublishReply, StoreError> {
    let Publication { version, added, removed, checked } = *publication;
    if version != truth.filter_version {
        return Ok(PublishReply::Stale);
    }
    // Nothing was filtered without the first publication, so it makes no duties, and it counts although it may be empty.
    let is_first = truth.filter_version == 0;
    let mut is_changed = is_first;
    for key in removed {
        is_changed |= books.remove_member(key)?;
    }
    let mut joined: BTreeMap<i64, Vec<String>> = BTreeMap::new();
    for member in added {
        if books.add_member(&member.key)? {
            is_changed = true;
            let from = member.from.map_or(truth.filter_checked + 1, signed);
            joined.entry(from).or_default().push(member.key.clone());
        }
    }
    if !is_first {
        for (from, members) in joined {
            add_duty(books, truth, from, members)?;
        }
    }
    truth.filter_version += u64::from(is_changed);
    if is_first {
        truth.filter_checked = truth.tip;
    }
    // Not the tip of now: what was delivered since the list was read may lack what joined it since.
    if let Some(checked) = checked.filter(|checked| checked.epoch == truth.epoch) {
        truth.filter_checked = truth.filter_checked.max(checked.tip.min(truth.tip));
    }
    Ok(PublishReply::Published(truth.filter_version))
}

/// A duty to scan from there to the tip, where that is anything.
fn add_duty(books: &mut Books<'_>, truth: &mut Truth, from: i64, mut members: Vec<String>) -> Result<(), StoreError> {
    let (Ok(from), Ok(tip)) = (u64::try_from(from), u64::try_from(truth.tip)) else { return Ok(()) };
    let Some(range) = BlockRange::new(from, tip) else { return Ok(()) };
    truth.duties += 1;
    members.sort();
    books.put_duty(&Duty { id: truth.duties, range, members })
}

/// SCANNED.
pub(super) fn scanned(books: &mut Books<'_>, id: u64, up_to: u64) -> Result<(), StoreError> {
    let Some(duty) = books.duty(id)? else { return Ok(()) };
    if up_to >= duty.range.to {
        return books.drop_duty(id);
    }
    if up_to < duty.range.from {
        return Ok(());
    }
    let rest = BlockRange { from: up_to + 1, to: duty.range.to };
    books.put_duty(&Duty { range: rest, ..duty })
}
