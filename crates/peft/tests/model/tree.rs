//! The tree of what is trained, against one drawn by hand.

use peft::{Lora, Method, Model, ModelOptions, Targets};

use crate::support::*;

/// The counts are those of the tiny BERT's shapes: 100 words, 40 positions, 2 types, 2 layers of width 32 and 64, 3 labels.
#[test]
fn equal_layers_are_drawn_once_and_what_is_trained_is_marked() {
    let method = Method::Lora(Lora::rank(2).on(Targets::suffixes(["query"])));
    let model = Model::new(&tiny(), &ModelOptions::new(method, 3)).unwrap();
    let expected = "\
*trained       all
     355    23,107  model
     256    23,008  ├── bert
       0     4,608  │   ├── embeddings
       0     3,200  │   │   ├── word_embeddings  weight [100, 32]
       0     1,280  │   │   ├── position_embeddings  weight [40, 32]
       0        64  │   │   ├── token_type_embeddings  weight [2, 32]
       0        64  │   │   └── LayerNorm  weight [32], bias [32]
     256    17,344  │   ├── encoder.layer.0-1
     256     8,832  │   │   ├── attention
     256     6,592  │   │   │   ├── self
     256     2,368  │   │   │   │   ├── query  weight [32, 32], bias [32]
     128       128  │   │   │   │   │   ├── lora_A  *weight [2, 32]
     128       128  │   │   │   │   │   └── lora_B  *weight [32, 2]
       0     2,112  │   │   │   │   ├── key  weight [32, 32], bias [32]
       0     2,112  │   │   │   │   └── value  weight [32, 32], bias [32]
       0     2,240  │   │   │   └── output
       0     2,112  │   │   │       ├── dense  weight [32, 32], bias [32]
       0       128  │   │   │       └── LayerNorm  weight [32], bias [32]
       0     4,224  │   │   ├── intermediate.dense  weight [64, 32], bias [64]
       0     4,288  │   │   └── output
       0     4,160  │   │       ├── dense  weight [32, 64], bias [32]
       0       128  │   │       └── LayerNorm  weight [32], bias [32]
       0     1,056  │   └── pooler.dense  weight [32, 32], bias [32]
      99        99  └── classifier  *weight [3, 32], *bias [3]";
    assert_eq!(model.trainable_tree().to_string(), expected);
    let (tree, report) = (model.trainable_tree(), model.trainable_report());
    assert_eq!((tree.trainable(), tree.count()), (report.trainable(), report.total));
}

#[test]
fn layers_that_differ_are_drawn_apart() {
    let lora = Lora { layers_to_transform: Some(vec![1]), ..Lora::rank(2) };
    let tree = Model::new(&tiny(), &ModelOptions::new(Method::Lora(lora), 3)).unwrap().trainable_tree().to_string();
    assert!(tree.contains("├── encoder.layer\n") && !tree.contains("0-1"), "{tree}");
    let layers: Vec<&str> = tree.lines().filter(|line| line.ends_with("── 0") || line.ends_with("── 1")).collect();
    assert!(matches!(&layers[..], [first, second] if first.contains("  0   ") && !second.contains("  0   ")), "{tree}");
}

#[test]
fn what_is_merged_for_good_is_no_part_of_the_tree() {
    let merged = Model::new(&tiny(), &ModelOptions::new(Method::lora(4), 3)).unwrap().merge_and_unload().unwrap();
    let head = Model::new(&tiny(), &ModelOptions::new(Method::Head, 3)).unwrap();
    assert_eq!(merged.trainable_tree(), head.trainable_tree());
}
