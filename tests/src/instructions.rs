//! What the instructions of a loaded program show of it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

/// How much stack the functions take that are active at once, at most.
pub fn stack_depth(instructions: &[u64]) -> Result<u32> {
    let mut depths = BTreeMap::new();
    // Callees stand behind their callers, or the kernel would have to be asked for their order.
    for bounds in function_bounds(instructions).windows(2).rev() {
        let (start, end) = (bounds[0], bounds[1]);
        let mut below = 0;
        for (index, instruction) in (start..).zip(&instructions[start..end]) {
            let Some(callee) = callee(index, *instruction) else { continue };
            let depth = depths.get(&callee);
            below = below.max(*depth.context("a function calls one that stands before it")?);
        }
        depths.insert(start, frame_depth(&instructions[start..end])? + below);
    }
    depths.get(&0).copied().context("the program has no instructions")
}

/// Where the function begins that an instruction calls, if it calls one of the program's own.
fn callee(index: usize, instruction: u64) -> Option<usize> {
    let is_call = instruction & 0xff == 0x85 && (instruction >> 12) & 15 == 1;
    // Where the kernel has compiled the program, it shows the distance in the offset.
    let distance = match (instruction >> 16) as i16 {
        0 => (instruction >> 32) as i32 as isize,
        offset => isize::from(offset),
    };
    is_call.then(|| index.wrapping_add_signed(distance) + 1)
}

/// How far below the frame pointer a function's instructions reach: loads and stores relative to it, and
/// copies of it that something is added to.
fn frame_depth(instructions: &[u64]) -> Result<u32> {
    const FRAME_POINTER: u64 = 10;
    let mut deepest = 0;
    for (index, instruction) in instructions.iter().enumerate() {
        let [code, registers, ..] = instruction.to_le_bytes();
        let (dst, src) = (u64::from(registers & 15), u64::from(registers >> 4));
        let offset = i64::from((instruction >> 16) as i16);
        let reach = match code & 7 {
            // LDX
            1 if src == FRAME_POINTER => offset,
            // ST, STX
            2 | 3 if dst == FRAME_POINTER => offset,
            // 64-bit register to register, then an addition of a constant
            7 if code == 0xbf && src == FRAME_POINTER => match instructions.get(index + 1) {
                Some(next) if *next & 0xfff == 0x07 | dst << 8 => i64::from((next >> 32) as i32),
                _ => bail!("instruction {index} copies the frame pointer somewhere"),
            },
            _ => 0,
        };
        deepest = deepest.min(reach);
    }
    Ok(u32::try_from(-deepest)?)
}

/// Instructions that are no jump, and behind which a loop begins that they belong to. The verifier takes
/// them since Linux 6.2; Linux 6.1 takes a loop only where a jump leads back to its beginning.
pub fn loops_without_jump(instructions: &[u64]) -> Vec<usize> {
    let bounds = function_bounds(instructions);
    bounds.windows(2).flat_map(|bounds| in_function(instructions, bounds[0])).collect()
}

/// The depth-first search of the verifier of Linux 6.1 (`check_cfg`) from a function's first instruction.
fn in_function(instructions: &[u64], start: usize) -> Vec<usize> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([start]);
    let mut path = vec![(start, successors(instructions, start))];
    while let Some((index, left)) = path.last_mut() {
        let index = *index;
        let Some((next, is_jump)) = left.pop() else {
            path.pop();
            continue;
        };
        if seen.insert(next) {
            path.push((next, successors(instructions, next)));
        } else if !is_jump && path.iter().any(|(on_path, _)| *on_path == next) {
            found.push(index);
        }
    }
    found
}

/// Where an instruction leads, what is to be followed first at the end, and whether by a jump.
fn successors(instructions: &[u64], index: usize) -> Vec<(usize, bool)> {
    const LOAD_64_BITS: u8 = 0x18;
    const EXIT: u8 = 0x95;
    const JUMP: u8 = 0x05;
    const JUMP_FAR: u8 = 0x06;
    const CALL: u8 = 0x85;
    let instruction = instructions[index];
    let target = |distance: isize| index.wrapping_add_signed(distance + 1);
    let near = isize::from((instruction >> 16) as i16);
    match instruction as u8 {
        EXIT => Vec::new(),
        LOAD_64_BITS => vec![(index + 2, false)],
        JUMP => vec![(target(near), true)],
        JUMP_FAR => vec![(target((instruction >> 32) as i32 as isize), true)],
        CALL => vec![(index + 1, false)],
        code if matches!(code & 7, 5 | 6) => vec![(target(near), true), (index + 1, true)],
        _ => vec![(index + 1, false)],
    }
}

/// Where functions begin, and the end of the last.
fn function_bounds(instructions: &[u64]) -> Vec<usize> {
    let starts: BTreeSet<usize> = (0..instructions.len())
        .filter_map(|index| callee(index, instructions[index]))
        .chain([0, instructions.len()])
        .collect();
    starts.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOVE: u64 = 0xb7;
    const EXIT: u64 = 0x95;

    fn jump(code: u64, distance: i16) -> u64 {
        code | u64::from(distance as u16) << 16
    }

    #[test]
    fn a_loop_closed_by_a_jump_is_none_without() {
        let closed = [MOVE, MOVE, jump(0x15, -2), EXIT];
        assert!(loops_without_jump(&closed).is_empty());
        let closed = [MOVE, jump(0x15, 1), jump(0x05, -3), EXIT];
        assert!(loops_without_jump(&closed).is_empty());
    }

    #[test]
    fn a_loop_closed_by_falling_through_is_found() {
        // Jumps over its body to its condition, which jumps back to the body.
        let rotated = [jump(0x05, 1), MOVE, MOVE, jump(0x15, -3), EXIT];
        assert_eq!(loops_without_jump(&rotated), [1]);
    }
}
