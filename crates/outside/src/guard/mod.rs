//! The policies around any call to the outside, and their order.

pub mod deadline;
