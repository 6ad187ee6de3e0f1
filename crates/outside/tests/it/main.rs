//! What `outside` promises, held against hostile others on loopback.

mod http;
