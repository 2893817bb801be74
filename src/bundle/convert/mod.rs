//! An image's configuration to config.json.
