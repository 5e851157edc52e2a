//! Dead letters over the tables, with the limits of both kinds.

use super::books::Books;
use crate::store::{DeadKind, DeadLetter, MAX_REFUSED, MAX_UNDECODABLE, StoreError, write_letter};

/// Keeps dead letters; `false`, and none kept, where there is no room for the refused ones.
pub(super) fn bury(books: &mut Books<'_>, letters: &[DeadLetter]) -> Result<bool, StoreError> {
    let mut refused = books.letter_count()?.saturating_sub(books.undecodable_count()?);
    for letter in letters {
        if letter.kind == DeadKind::Refused && !books.has_letter(&letter.key)? {
            refused += 1;
        }
    }
    if refused > MAX_REFUSED {
        return Ok(false);
    }
    for letter in letters {
        let age = (letter.kind == DeadKind::Undecodable).then_some(letter.buried_at);
        books.put_letter(&letter.key, &write_letter(letter)?, age)?;
    }
    while books.undecodable_count()? > MAX_UNDECODABLE {
        books.drop_oldest_undecodable()?;
    }
    Ok(true)
}
