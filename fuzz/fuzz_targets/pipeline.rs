//! Pipeline files: any bytes are read or refused with a place, and what is refused names a line of
//! the file.
#![no_main]

use std::path::Path;

use dispatcher::pipeline::{Pipeline, PipelineError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Pipeline::from_bytes(bytes, "p.yaml", Path::new("/somewhere")) {
        Ok(pipeline) => assert!(!pipeline.modules.is_empty()),
        Err(PipelineError::Wrong { line, problem, .. }) => {
            let lines = bytes.split(|byte| matches!(byte, b'\n' | b'\r')).count() as u64;
            assert!(line >= 1 && line <= lines + 1, "line {line} of {lines}: {problem}");
            assert!(!problem.to_string().is_empty());
        }
        Err(error @ PipelineError::Read { .. }) => panic!("nothing was to be read: {error}"),
    }
});
