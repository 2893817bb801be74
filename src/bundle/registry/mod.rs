//! The source that is a registry.
