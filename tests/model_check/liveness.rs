//! Always eventually: from every world that was reached, once nothing goes wrong any more, whatever order things happen in.
//!
//! stateright's own `eventually` takes the join of two paths for a cycle, and misses what goes on for ever. So the whole
//! graph of what follows is built here, and its strongly connected components are looked at. One that nothing leads out of
//! is where the world may stay: there everybody must be as declared. One with more than one world in it is a world that can
//! change for ever: there must be none.

use std::collections::HashMap;

use stateright::Model;

use crate::Rules;
use crate::state::{State, Stuck};

/// What was looked at.
#[derive(Debug, Default)]
pub struct Extent {
    pub states: usize,
    pub steps: usize,
    pub ends: usize,
}

/// Everything that follows from some worlds.
struct Graph {
    states: Vec<State>,
    next: Vec<Vec<u32>>,
    from: Vec<Option<u32>>,
}

/// Looks at everything that follows from `worlds`.
///
/// # Errors
/// How a world comes about from which it does not converge.
pub fn check(rules: &Rules, worlds: Vec<State>) -> Result<Extent, String> {
    let graph = Graph::of(rules, worlds);
    let components = graph.components();
    let mut of = vec![0; graph.states.len()];
    for (number, component) in components.iter().enumerate() {
        for state in component {
            of[*state as usize] = number;
        }
    }
    let mut ends = 0;
    for (number, component) in components.iter().enumerate() {
        let first = component[0];
        let world = graph.states[first as usize].world();
        let differs = component.iter().find(|state| !is_same(&world, &graph.states[**state as usize]));
        if let Some(other) = differs {
            let what = format!("it changes for ever, between this and\n{:?}", graph.states[*other as usize]);
            return Err(graph.tell(rules, first, &what));
        }
        let leaves = |state: &u32| graph.next[*state as usize].iter().any(|next| of[*next as usize] != number);
        if component.iter().any(leaves) {
            continue;
        }
        ends += 1;
        if let Some(state) = component.iter().find(|state| !is_right(&graph.states[**state as usize])) {
            return Err(graph.tell(rules, *state, "it stays like this, and is not as declared"));
        }
    }
    let steps = graph.next.iter().map(Vec::len).sum();
    Ok(Extent { states: graph.states.len(), steps, ends })
}

fn is_same(world: &[crate::state::Vm; 2], other: &State) -> bool {
    let other = other.world();
    // The names of the two are exchanged now and then: see `State::normal`.
    *world == other || (world[0] == other[1] && world[1] == other[0])
}

/// Whether everybody is as declared who is not kept from it.
fn is_right(state: &State) -> bool {
    let is_kept = |index: usize| matches!(state.stuck, Some(Stuck::Hung(kept) | Stuck::Blind(kept)) if kept == index);
    state.breach.is_none()
        && (0..2).all(|index| is_kept(index) || state.is_converged(index) || state.is_left_alone(index))
}

impl Graph {
    fn of(rules: &Rules, worlds: Vec<State>) -> Self {
        let mut graph = Self { states: Vec::new(), next: Vec::new(), from: Vec::new() };
        let mut known: HashMap<State, u32> = HashMap::new();
        for world in worlds {
            graph.number(&mut known, world, None);
        }
        let mut steps = Vec::new();
        let mut at = 0;
        while at < graph.states.len() {
            let state = graph.states[at].clone();
            rules.actions(&state, &mut steps);
            let mut next = Vec::new();
            for step in steps.drain(..) {
                if let Some(follows) = rules.next_state(&state, step) {
                    next.push(graph.number(&mut known, follows, u32::try_from(at).ok()));
                }
            }
            next.sort_unstable();
            next.dedup();
            graph.next.push(next);
            at += 1;
        }
        graph
    }

    fn number(&mut self, known: &mut HashMap<State, u32>, state: State, from: Option<u32>) -> u32 {
        let new = u32::try_from(self.states.len()).expect("the graph fits into memory");
        let number = *known.entry(state.clone()).or_insert(new);
        if number == new {
            self.states.push(state);
            self.from.push(from);
        }
        number
    }

    /// The strongly connected components (Tarjan 1972), without recursion.
    fn components(&self) -> Vec<Vec<u32>> {
        const NONE: u32 = u32::MAX;
        let count = self.states.len();
        let (mut index, mut low) = (vec![NONE; count], vec![0_u32; count]);
        let (mut on_stack, mut stack, mut found) = (vec![false; count], Vec::new(), Vec::new());
        let mut clock = 0;
        for root in 0..u32::try_from(count).unwrap() {
            if index[root as usize] != NONE {
                continue;
            }
            let mut work = vec![(root, 0_usize)];
            while let Some((node, edge)) = work.pop() {
                let at = node as usize;
                if edge == 0 {
                    (index[at], low[at]) = (clock, clock);
                    clock += 1;
                    stack.push(node);
                    on_stack[at] = true;
                } else {
                    let child = self.next[at][edge - 1] as usize;
                    low[at] = low[at].min(low[child]);
                }
                let mut edge = edge;
                let mut descended = false;
                while edge < self.next[at].len() {
                    let child = self.next[at][edge];
                    edge += 1;
                    if index[child as usize] == NONE {
                        work.push((node, edge));
                        work.push((child, 0));
                        descended = true;
                        break;
                    }
                    if on_stack[child as usize] {
                        low[at] = low[at].min(index[child as usize]);
                    }
                }
                if !descended && low[at] == index[at] {
                    let from = stack.iter().rposition(|on| *on == node).expect("it is on the stack");
                    let component: Vec<u32> = stack.drain(from..).collect();
                    for state in &component {
                        on_stack[*state as usize] = false;
                    }
                    found.push(component);
                }
            }
        }
        found
    }

    /// How a state came about, and what is wrong with it.
    fn tell(&self, rules: &Rules, state: u32, what: &str) -> String {
        let mut path = vec![state];
        while let Some(from) = self.from[path[path.len() - 1] as usize] {
            path.push(from);
        }
        path.reverse();
        let start = &self.states[path[0] as usize];
        let mut text = format!("from\n{start:?}\n");
        for pair in path.windows(2) {
            let (before, after) = (&self.states[pair[0] as usize], &self.states[pair[1] as usize]);
            let mut steps = Vec::new();
            rules.actions(before, &mut steps);
            let step = steps.into_iter().find(|step| rules.next_state(before, step.clone()).as_ref() == Some(after));
            text.push_str(&format!("{step:?}\n"));
        }
        format!("{text}{what}\n{:?}", self.states[state as usize])
    }
}
