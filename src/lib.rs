//! stead keeps one Linux host's microVMs as its manifests declare them.
//!
//! ```text
//! manifests/*.yaml ──► desired ──┐
//!                                ├──► plan (pure) ──► act ──► handles.json, ledger.json ──► status
//! host, vmm (read) ──► observed ─┘                     │
//!                                                      └──► host, vmm (write)
//! ```
//!
//! [`reconcile`] draws this picture in code. The rooms:

pub mod act;
pub mod audit;
pub mod cli;
pub mod config;
pub mod control;
pub mod desired;
pub mod doctor;
pub mod host;
pub mod http;
pub mod metrics;
pub mod names;
pub mod observed;
pub mod plan;
pub mod push;
pub mod reasons;
pub mod reconcile;
pub mod service_manager;
pub mod spec;
pub mod state;
pub mod status;
pub mod sync;
pub mod time;
pub mod vmm;
pub mod wakeups;
