//! Errors: their text for people, and one question that callers ask about them.

/// Returns the texts of an error and its causes in one line, joined by `: `. A cause whose text the
/// line already contains is not repeated.
pub fn error_chain(error: &dyn std::error::Error) -> String {
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

/// Whether an operation failed because this machine has no room left: the disk is full, a quota is
/// used up, or no descriptor or no memory is free. A later try or another machine may have room.
pub fn is_no_room(error: &std::io::Error) -> bool {
    let lacks = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM];
    error.raw_os_error().is_some_and(|errno| lacks.contains(&errno))
}
