//! Errors as people read them.

/// An error and its causes in one line; a cause that an error repeats itself is said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

/// Whether an act failed because this machine has no room left: a full disk, a quota, no
/// descriptor, no memory. Another time or another machine may have it.
pub fn is_no_room(error: &std::io::Error) -> bool {
    let lacks = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| lacks.contains(&errno))
}
