//! What a module's jobs may use of a machine, in Kubernetes quantities: `cpu: 500m`,
//! `memory: 256Mi`, `gpu: 1`.

use serde::{Deserialize, Serialize};

/// What one job may use of a machine, where its executor can limit it. A resource with `None` is
/// not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Thousandths of a processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes of memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Whole GPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpus: Option<u64>,
}

/// The least memory in which a container starts. Less is a mistake in the unit (`64` for `64Mi`).
const MEMORY_LEAST: u64 = 4 << 20;

/// The suffixes of Kubernetes, and their factors: powers of two, or of ten.
const SUFFIXES: [(&str, Factor); 15] = [
    ("Ki", Factor::Twos(10)),
    ("Mi", Factor::Twos(20)),
    ("Gi", Factor::Twos(30)),
    ("Ti", Factor::Twos(40)),
    ("Pi", Factor::Twos(50)),
    ("Ei", Factor::Twos(60)),
    ("k", Factor::Tens(3)),
    ("M", Factor::Tens(6)),
    ("G", Factor::Tens(9)),
    ("T", Factor::Tens(12)),
    ("P", Factor::Tens(15)),
    ("E", Factor::Tens(18)),
    ("m", Factor::Tens(-3)),
    ("u", Factor::Tens(-6)),
    ("n", Factor::Tens(-9)),
];

/// Why a resource cannot be set.
#[derive(Debug, thiserror::Error)]
pub(super) enum ResourceError {
    /// No resource has this name.
    #[error("there is no resource {0:?}; allowed: cpu, memory, gpu")]
    Unknown(String),
    /// The resource cannot have this value.
    #[error("{name:?} cannot be {text:?}: {example} is allowed")]
    Value {
        /// The resource.
        name: String,
        /// The value in the file.
        text: String,
        /// What is allowed.
        example: &'static str,
    },
}

#[derive(Clone, Copy)]
enum Factor {
    Twos(u32),
    Tens(i32),
}

impl Resources {
    /// Sets the resource `name` to what `text` says.
    ///
    /// # Errors
    /// That there is no such resource, or which values it may have.
    pub(super) fn set(&mut self, name: &str, text: &str) -> Result<(), ResourceError> {
        let wrong = |example| ResourceError::Value {
            name: name.to_owned(),
            text: text.to_owned(),
            example,
        };
        let positive = |value: Option<u64>| value.filter(|value| *value > 0);
        match name {
            "cpu" => {
                let millis = positive(parse_quantity(text, 3));
                self.cpu_millis =
                    Some(millis.ok_or_else(|| wrong("processors as in 500m, 0.5 or 2"))?);
            }
            "memory" => {
                let bytes =
                    positive(parse_quantity(text, 0)).filter(|bytes| *bytes >= MEMORY_LEAST);
                self.memory_bytes =
                    Some(bytes.ok_or_else(|| wrong("bytes as in 256Mi or 2G, from 4Mi on,"))?);
            }
            "gpu" => {
                let gpus = positive(text.trim().parse().ok());
                self.gpus = Some(gpus.ok_or_else(|| wrong("a whole number as in 1"))?);
            }
            _ => return Err(ResourceError::Unknown(name.to_owned())),
        }
        Ok(())
    }

    /// Returns whether no resource is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Reads a quantity in units of `10^-places`, rounded up as Kubernetes does; none if it is not
/// valid.
fn parse_quantity(text: &str, places: i32) -> Option<u64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fits =
        |digits: &str| digits.len() <= 18 && digits.bytes().all(|byte| byte.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !fits(whole) || !fits(fraction) {
        return None;
    }
    let mantissa: u128 = format!("{whole}{fraction}").parse().ok()?;
    let (twos, tens) =
        match (SUFFIXES.iter().find(|(name, _)| *name == suffix), parse_exponent(suffix)) {
            (Some((_, Factor::Twos(twos))), _) => (*twos, 0),
            (Some((_, Factor::Tens(tens))), _) => (0, *tens),
            (None, Some(tens)) => (0, tens),
            (None, None) => return None,
        };
    let tens = tens + places - i32::try_from(fraction.len()).ok()?;
    let scaled = mantissa.checked_mul(1 << twos)?;
    let power = 10_u128.checked_pow(tens.unsigned_abs())?;
    let value = if tens < 0 { scaled.div_ceil(power) } else { scaled.checked_mul(power)? };
    u64::try_from(value).ok().filter(|value| i64::try_from(*value).is_ok())
}

/// Reads an exponent: `e3` or `E3`; an empty text is `e0`.
fn parse_exponent(suffix: &str) -> Option<i32> {
    if suffix.is_empty() {
        return Some(0);
    }
    suffix.strip_prefix(['e', 'E'])?.parse().ok().filter(|tens: &i32| tens.abs() <= 18)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes_own() {
        for (text, millis) in [
            ("500m", 500),
            ("0.5", 500),
            ("2", 2000),
            ("1.0001", 1001),
            (".1", 100),
            ("1e1", 10_000),
        ] {
            assert_eq!(parse_quantity(text, 3), Some(millis), "{text}");
        }
        for (text, bytes) in [
            ("256Mi", 256 << 20),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("129e6", 129_000_000),
            ("1500m", 2),
        ] {
            assert_eq!(parse_quantity(text, 0), Some(bytes), "{text}");
        }
        for text in [
            "",
            ".",
            "1.2.3",
            "-1",
            "1 Mi",
            "1MiB",
            "Mi",
            "1e99",
            "99999999999Ei",
            "9999999999999999999",
        ] {
            assert_eq!(parse_quantity(text, 0), None, "{text}");
        }
    }
}
