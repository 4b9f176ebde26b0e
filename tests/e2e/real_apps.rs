//! Programs people run, under clients people use: each sleeps and wakes between steps.

mod files;
mod flask;
mod git;
mod vite;
