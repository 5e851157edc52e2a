//! Keccak-256 of eight short texts at a time, for the checksums of addresses (EIP-55).
//!
//! A hash of one text uses one lane of a processor that has four (AVX2) or eight (AVX-512): working on as many texts at once
//! takes about as long as on one. The permutation is written once, for either width; where there is neither, alloy hashes one
//! text after the other. What that is worth: `encode` of `cargo bench --bench stages`, together and each alone.

use alloy::primitives::keccak256;
use arrayvec::ArrayVec;

/// Texts that are hashed together at most.
pub(super) const AT_ONCE: usize = 8;

/// An address in lower-case hexadecimal, as EIP-55 hashes it.
pub(super) type Text = [u8; 40];
/// A hash of 256 bits.
pub(super) type Hash = [u8; 32];

/// The hash of each.
pub(super) fn hash_each(texts: &ArrayVec<Text, AT_ONCE>) -> ArrayVec<Hash, AT_ONCE> {
    #[cfg(target_arch = "x86_64")]
    if texts.len() > 1
        && let Some(hashes) = lanes::hash_each(texts)
    {
        return hashes;
    }
    texts.iter().map(|text| keccak256(text).0).collect()
}

#[cfg(target_arch = "x86_64")]
mod lanes {
    use std::{array::from_fn, mem::replace};

    use arrayvec::ArrayVec;
    use pulp::{
        NullaryFnOnce, cast, u64x4, u64x8,
        x86::{V3, V4},
    };

    use super::{AT_ONCE, Hash, Text};

    /// Words of the state, of 64 bits (FIPS 202 §3.1).
    const STATE: usize = 25;
    /// The padding of Keccak begins with this behind the text, in the state's sixth word: SHA-3 has another (FIPS 202 §6.1).
    const PADDING_BEGINS: u64 = 0x01;
    /// And it ends with the highest bit of the last word that takes text, the 17th: the rate is 1,088 bits.
    const PADDING_ENDS: u64 = 1 << 63;
    /// The round constants of step ι (FIPS 202 §3.2.5).
    const ROUNDS: [u64; 24] = [
        0x0000_0000_0000_0001,
        0x0000_0000_0000_8082,
        0x8000_0000_0000_808a,
        0x8000_0000_8000_8000,
        0x0000_0000_0000_808b,
        0x0000_0000_8000_0001,
        0x8000_0000_8000_8081,
        0x8000_0000_0000_8009,
        0x0000_0000_0000_008a,
        0x0000_0000_0000_0088,
        0x0000_0000_8000_8009,
        0x0000_0000_8000_000a,
        0x0000_0000_8000_808b,
        0x8000_0000_0000_008b,
        0x8000_0000_0000_8089,
        0x8000_0000_0000_8003,
        0x8000_0000_0000_8002,
        0x8000_0000_0000_0080,
        0x0000_0000_0000_800a,
        0x8000_0000_8000_000a,
        0x8000_0000_8000_8081,
        0x8000_0000_0000_8080,
        0x0000_0000_8000_0001,
        0x8000_0000_8000_8008,
    ];

    /// The hash of each, where the processor has lanes for it.
    pub(super) fn hash_each(texts: &[Text]) -> Option<ArrayVec<Hash, AT_ONCE>> {
        const HALF: usize = AT_ONCE / 2;
        let mut hashes = ArrayVec::new();
        if let Some(simd) = V4::try_new() {
            hashes.extend(simd.vectorize(Hashing { simd, texts: &padded::<AT_ONCE>(texts) }));
        } else {
            let simd = V3::try_new()?;
            for half in texts.chunks(HALF) {
                hashes.extend(simd.vectorize(Hashing { simd, texts: &padded::<HALF>(half) }));
            }
        }
        hashes.truncate(texts.len());
        Some(hashes)
    }

    /// A text for each lane, some of which nobody asks for.
    fn padded<const N: usize>(texts: &[Text]) -> [Text; N] {
        from_fn(|lane| texts.get(lane).copied().unwrap_or([0; 40]))
    }

    /// What is done to the words of `N` states at once, a lane each.
    trait Lanes<const N: usize>: Copy {
        type Words: Copy;
        fn words(self, each: [u64; N]) -> Self::Words;
        fn each(self, words: Self::Words) -> [u64; N];
        fn xor(self, a: Self::Words, b: Self::Words) -> Self::Words;
        /// Of `b` what is not in `a`.
        fn without(self, a: Self::Words, b: Self::Words) -> Self::Words;
        fn rotate_left(self, a: Self::Words, bits: u64) -> Self::Words;
    }

    macro_rules! lanes {
        ($simd:ty, $count:literal, $words:ty, $splat:ident, $xor:ident, $and:ident, $or:ident, $not:ident, $shl:ident, $shr:ident) => {
            impl Lanes<$count> for $simd {
                type Words = $words;

                #[inline(always)]
                fn words(self, each: [u64; $count]) -> $words {
                    cast(each)
                }

                #[inline(always)]
                fn each(self, words: $words) -> [u64; $count] {
                    cast(words)
                }

                #[inline(always)]
                fn xor(self, a: $words, b: $words) -> $words {
                    self.$xor(a, b)
                }

                #[inline(always)]
                fn without(self, a: $words, b: $words) -> $words {
                    self.$and(self.$not(a), b)
                }

                #[inline(always)]
                fn rotate_left(self, a: $words, bits: u64) -> $words {
                    self.$or(self.$shl(a, self.$splat(bits)), self.$shr(a, self.$splat(64 - bits)))
                }
            }
        };
    }

    lanes!(V3, 4, u64x4, splat_u64x4, xor_u64x4, and_u64x4, or_u64x4, not_u64x4, shl_dyn_u64x4, shr_dyn_u64x4);
    lanes!(V4, 8, u64x8, splat_u64x8, xor_u64x8, and_u64x8, or_u64x8, not_u64x8, shl_dyn_u64x8, shr_dyn_u64x8);

    /// Hashes a text in each lane.
    pub(super) struct Hashing<'t, S, const N: usize> {
        pub(super) simd: S,
        pub(super) texts: &'t [Text; N],
    }

    impl<S: Lanes<N>, const N: usize> NullaryFnOnce for Hashing<'_, S, N> {
        type Output = [Hash; N];

        #[inline(always)]
        #[expect(clippy::inline_always, reason = "it uses what only the caller may")]
        fn call(self) -> [Hash; N] {
            let Self { simd, texts } = self;
            let mut state = [simd.words([0; N]); STATE];
            let word =
                |text: &Text, at: usize| text.as_chunks().0.get(at).map_or(0, |bytes| u64::from_le_bytes(*bytes));
            for (at, words) in state.iter_mut().enumerate() {
                *words = simd.words(match at {
                    0..5 => texts.each_ref().map(|text| word(text, at)),
                    5 => [PADDING_BEGINS; N],
                    16 => [PADDING_ENDS; N],
                    _ => [0; N],
                });
            }
            let [a, b, c, d, ..] = permuted(simd, state).map(|words| simd.each(words));
            from_fn(|lane| {
                let mut hash = Hash::default();
                for (bytes, word) in hash.as_chunks_mut().0.iter_mut().zip([a, b, c, d]) {
                    *bytes = word.get(lane).copied().unwrap_or_default().to_le_bytes();
                }
                hash
            })
        }
    }

    /// The permutation of 1,600 bits (FIPS 202 §3.3).
    #[inline(always)]
    #[expect(clippy::inline_always, reason = "it uses what only the caller may")]
    #[expect(clippy::indexing_slicing, reason = "places in an array of 25 that are below 25")]
    fn permuted<S: Lanes<N>, const N: usize>(simd: S, mut state: [S::Words; STATE]) -> [S::Words; STATE] {
        for constant in ROUNDS {
            // θ
            let column = |x: usize| (1..5).fold(state[x], |sum, y| simd.xor(sum, state[5 * y + x]));
            let sums: [S::Words; 5] = from_fn(column);
            for x in 0..5 {
                let both = simd.xor(sums[(x + 4) % 5], simd.rotate_left(sums[(x + 1) % 5], 1));
                for y in 0..5 {
                    state[5 * y + x] = simd.xor(state[5 * y + x], both);
                }
            }
            // ρ and π, a walk through all places but the first; a loop would keep the state out of the registers.
            let mut carried = state[1];
            macro_rules! walk {
                ($($place:literal by $bits:literal),*) => {
                    $(carried = replace(&mut state[$place], simd.rotate_left(carried, $bits));)*
                };
            }
            walk!(
                10 by 1, 7 by 3, 11 by 6, 17 by 10, 18 by 15, 3 by 21, 5 by 28, 16 by 36, 8 by 45, 21 by 55, 24 by 2,
                4 by 14, 15 by 27, 23 by 41, 19 by 56, 13 by 8, 12 by 25, 2 by 43, 20 by 62, 14 by 18, 22 by 39, 9 by 61,
                6 by 20
            );
            state[1] = simd.rotate_left(carried, 44);
            // χ
            for y in 0..5 {
                let row: [S::Words; 5] = from_fn(|x| state[5 * y + x]);
                for x in 0..5 {
                    state[5 * y + x] = simd.xor(row[x], simd.without(row[(x + 1) % 5], row[(x + 2) % 5]));
                }
            }
            // ι
            state[0] = simd.xor(state[0], simd.words([constant; N]));
        }
        state
    }
}

#[cfg(test)]
mod tests {
    use std::array::from_fn;

    use super::*;

    /// Texts that differ in every byte.
    fn texts(round: u8) -> [Text; AT_ONCE] {
        let byte = |lane: usize, at: usize| keccak256([round, lane.to_le_bytes()[0], at.to_le_bytes()[0]])[0];
        from_fn(|lane| from_fn(|at| byte(lane, at)))
    }

    #[test]
    fn so_many_texts_have_the_hashes_that_alloy_gives_them() {
        for count in 0..=AT_ONCE {
            let texts: ArrayVec<_, _> = texts(count.to_le_bytes()[0]).into_iter().take(count).collect();
            assert!(hash_each(&texts).into_iter().eq(texts.iter().map(|text| keccak256(text).0)), "{count}");
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn so_does_each_width_that_this_processor_has() {
        use pulp::x86::{V3, V4};

        use super::lanes::Hashing;

        for texts in (0..100).map(texts) {
            let right = texts.map(|text| keccak256(text).0);
            if let Some(simd) = V4::try_new() {
                assert_eq!(simd.vectorize(Hashing { simd, texts: &texts }), right);
            }
            if let Some(simd) = V3::try_new() {
                let half = texts.first_chunk().unwrap();
                assert_eq!(simd.vectorize(Hashing { simd, texts: half }), right[..4]);
            }
        }
    }
}
