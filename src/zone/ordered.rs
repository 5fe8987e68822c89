//! A persistent ordered set: a B+ tree whose nodes are shared between versions.
//!
//! # Design
//! Reverse names need an order, not only equality: `96.10.in-addr.arpa` exists if any address below it does (RFC 8020).
//! The standard library's `BTreeMap` would have to be copied as a whole for each published zone. The balanced trees of
//! `im` and `rpds` have a node for each item, whereas a leaf here stores up to 64 items contiguously. A change copies
//! only the nodes on its path. Empty nodes are removed; underfull nodes are not merged, because addresses are reused.

use std::sync::Arc;

/// Maximum number of entries in a node; a larger node is split in two.
const WIDTH: usize = 64;

#[derive(Clone)]
enum TreeNode<T> {
    Leaf(Vec<T>),
    /// Children, each with its smallest item.
    Inner(Vec<(T, Arc<TreeNode<T>>)>),
}

/// A persistent ordered set; see the module documentation.
#[derive(Clone)]
pub struct Ordered<T> {
    root: Arc<TreeNode<T>>,
    len: usize,
}

impl<T> Default for Ordered<T> {
    fn default() -> Self {
        Ordered { root: Arc::new(TreeNode::Leaf(Vec::new())), len: 0 }
    }
}

impl<T: Ord + Clone> Ordered<T> {
    /// Number of items.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Adds an item; returns `false` if it was already present.
    pub fn insert(&mut self, item: T) -> bool {
        let (added, sibling) = insert(Arc::make_mut(&mut self.root), item);
        if let Some(sibling) = sibling {
            let first = std::mem::replace(&mut self.root, Arc::new(TreeNode::Leaf(Vec::new())));
            let children = [first, sibling].into_iter().filter_map(|node| Some((smallest(&node)?.clone(), node)));
            self.root = Arc::new(TreeNode::Inner(children.collect()));
        }
        self.len += usize::from(added);
        added
    }

    /// Removes an item; returns `false` if it was absent.
    pub fn remove(&mut self, item: &T) -> bool {
        let removed = remove(Arc::make_mut(&mut self.root), item);
        while let TreeNode::Inner(children) = &*self.root {
            match children.as_slice() {
                [] => self.root = Arc::new(TreeNode::Leaf(Vec::new())),
                [(_, only)] => self.root = only.clone(),
                _ => break,
            }
        }
        self.len -= usize::from(removed);
        removed
    }

    /// Calls `visit` with each item from the first one for which `before` is false, in order, until it returns
    /// `false`. `before` must be true for a prefix of the items and false for the rest.
    #[inline]
    pub fn visit_from(&self, before: impl Fn(&T) -> bool, mut visit: impl FnMut(&T) -> bool) {
        walk(&self.root, &before, &mut visit);
    }
}

fn smallest<T>(mut node: &TreeNode<T>) -> Option<&T> {
    loop {
        match node {
            TreeNode::Leaf(items) => return items.first(),
            TreeNode::Inner(children) => node = &children.first()?.1,
        }
    }
}

fn insert<T: Ord + Clone>(node: &mut TreeNode<T>, item: T) -> (bool, Option<Arc<TreeNode<T>>>) {
    match node {
        TreeNode::Leaf(items) => match items.binary_search(&item) {
            Ok(_) => (false, None),
            Err(at) => {
                items.insert(at, item);
                (true, split(items).map(|upper| Arc::new(TreeNode::Leaf(upper))))
            }
        },
        TreeNode::Inner(children) => {
            let at = children.partition_point(|(first, _)| *first <= item).saturating_sub(1);
            let (first, child) = &mut children[at];
            if item < *first {
                *first = item.clone();
            }
            let (added, sibling) = insert(Arc::make_mut(child), item);
            if let Some((first, sibling)) = sibling.and_then(|node| Some((smallest(&node)?.clone(), node))) {
                children.insert(at + 1, (first, sibling));
            }
            (added, split(children).map(|upper| Arc::new(TreeNode::Inner(upper))))
        }
    }
}

fn split<T>(items: &mut Vec<T>) -> Option<Vec<T>> {
    (items.len() > WIDTH).then(|| {
        let upper = items.split_off(WIDTH / 2);
        items.shrink_to_fit();
        upper
    })
}

fn remove<T: Ord + Clone>(node: &mut TreeNode<T>, item: &T) -> bool {
    match node {
        TreeNode::Leaf(items) => match items.binary_search(item) {
            Ok(at) => {
                items.remove(at);
                true
            }
            Err(_) => false,
        },
        TreeNode::Inner(children) => {
            let at = children.partition_point(|(first, _)| first <= item).saturating_sub(1);
            let Some((_, child)) = children.get_mut(at) else { return false };
            let removed = remove(Arc::make_mut(child), item);
            if smallest(child).is_none() {
                children.remove(at);
            }
            removed
        }
    }
}

fn walk<T>(node: &TreeNode<T>, before: &impl Fn(&T) -> bool, visit: &mut impl FnMut(&T) -> bool) -> bool {
    match node {
        TreeNode::Leaf(items) => {
            let from = items.partition_point(before);
            items.get(from..).unwrap_or(&[]).iter().all(visit)
        }
        TreeNode::Inner(children) => {
            let from = children.partition_point(|(first, _)| before(first)).saturating_sub(1);
            children.get(from..).unwrap_or(&[]).iter().all(|(_, child)| walk(child, before, visit))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After any sequence of changes, the items from any start on equal those of a BTreeSet.
        #[test]
        fn agrees_with_a_set(changes in prop::collection::vec((0u32..3000, any::<bool>()), 0..4000), from in 0u32..3000) {
            let mut tree = Ordered::<u32>::default();
            let mut model = BTreeSet::new();
            for (item, add) in changes {
                if add {
                    prop_assert_eq!(tree.insert(item), model.insert(item));
                } else {
                    prop_assert_eq!(tree.remove(&item), model.remove(&item));
                }
            }
            prop_assert_eq!(tree.len(), model.len());
            let mut seen = Vec::new();
            tree.visit_from(|item| *item < from, |item| { seen.push(*item); true });
            prop_assert_eq!(seen, model.range(from..).copied().collect::<Vec<_>>());
        }
    }
}
