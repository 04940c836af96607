//! Lets other packages depend on this one; the program is in `main.rs`.
#![no_std]
