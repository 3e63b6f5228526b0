//! The modules of a model as a tree, in which what is trained is marked.

use std::collections::BTreeSet;
use std::fmt;

use super::registry::Parameters;
use super::report::thousands;

/// A module, its parameters and the modules in it, in the order in which a pass meets them. The root is the model.
///
/// Its `Display` is a tree of lines (as OpenDelta's `Visualization` draws it), in front of which stand how many numbers are trained and
/// how many there are. Layers that are equal but for their number are one, such as `0-5`, and its lines count all of them; a
/// module that holds nothing but another stands on one line with it, such as `attention.self`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainableTree {
    /// The last part of its path, or more than one: `attention.self`, `layer.0-5`. Empty at the root.
    pub name: String,
    /// Its own parameters.
    pub parameters: Vec<TreeParameter>,
    /// What it is made of.
    pub modules: Vec<TrainableTree>,
    /// How many equal modules it stands for.
    pub times: usize,
}

/// A parameter of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeParameter {
    /// The last part of its path: `weight`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether training changes it.
    pub is_trained: bool,
}

impl TreeParameter {
    /// How many numbers it holds.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }
}

impl fmt::Display for TreeParameter {
    /// `weight [384, 384]`; behind a `*` where it is trained.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}{} {:?}", if self.is_trained { "*" } else { "" }, self.name, self.shape)
    }
}

impl TrainableTree {
    pub(crate) fn new(parameters: &Parameters) -> Self {
        let trained: BTreeSet<&str> = parameters.trainable().map(|(name, _)| name).collect();
        let mut root = Self::named("");
        for (path, shape) in parameters.shapes() {
            let (modules, name) = path.rsplit_once('.').unwrap_or(("", path));
            let module = modules.split('.').filter(|name| !name.is_empty()).fold(&mut root, Self::module);
            let is_trained = trained.contains(path.as_str());
            module.parameters.push(TreeParameter { name: name.into(), shape: shape.clone(), is_trained });
        }
        root.modules = root.modules.into_iter().map(Self::fold).collect();
        root
    }

    fn named(name: &str) -> Self {
        Self { name: name.into(), parameters: Vec::new(), modules: Vec::new(), times: 1 }
    }

    /// The module of that name in it.
    fn module(&mut self, name: &str) -> &mut Self {
        let index = self.modules.iter().position(|module| module.name == name).unwrap_or(self.modules.len());
        if index == self.modules.len() {
            self.modules.push(Self::named(name));
        }
        &mut self.modules[index]
    }

    /// With equal layers made one, and chains of modules that hold one another.
    fn fold(mut self) -> Self {
        let mut modules: Vec<Self> = Vec::new();
        for module in self.modules.into_iter().map(Self::fold) {
            match modules.last_mut().and_then(|last| Some((last.number()?, last))) {
                Some((first, last)) if module.number() == Some(first + last.times) && last.is_like(&module) => {
                    last.times += 1;
                }
                _ => modules.push(module),
            }
        }
        for module in modules.iter_mut().filter(|module| module.times > 1) {
            if let Some(first) = module.number() {
                module.name = format!("{first}-{}", first + module.times - 1);
            }
        }
        self.modules = modules;
        match self.modules.pop() {
            Some(only) if self.modules.is_empty() && self.parameters.is_empty() && self.number().is_none() => {
                Self { name: format!("{}.{}", self.name, only.name), ..only }
            }
            Some(last) => {
                self.modules.push(last);
                self
            }
            None => self,
        }
    }

    /// A layer's number; of several, that of the first.
    fn number(&self) -> Option<usize> {
        self.name.parse().ok()
    }

    /// Whether it is equal to another module but for its name.
    fn is_like(&self, other: &Self) -> bool {
        self.parameters == other.parameters && self.modules == other.modules
    }

    /// How many numbers it has, those of equal modules included.
    pub fn count(&self) -> usize {
        self.sum(&|_| true)
    }

    /// How many of them are trained.
    pub fn trainable(&self) -> usize {
        self.sum(&|parameter| parameter.is_trained)
    }

    fn sum(&self, counts: &impl Fn(&TreeParameter) -> bool) -> usize {
        let own: usize = self.parameters.iter().filter(|own| counts(own)).map(TreeParameter::count).sum();
        self.times * (own + self.modules.iter().map(|module| module.sum(counts)).sum::<usize>())
    }

    /// Its lines, with their numbers of trained parameters and of all. Those of equal modules are counted in each line.
    fn lines(&self, times: usize, above: &str, lines: &mut Vec<(usize, usize, String)>) {
        for (index, module) in self.modules.iter().enumerate() {
            let is_last = index + 1 == self.modules.len();
            let (branch, beneath) = if is_last { ("└── ", "    ") } else { ("├── ", "│   ") };
            let parameters: Vec<String> = module.parameters.iter().map(ToString::to_string).collect();
            let gap = if parameters.is_empty() { "" } else { "  " };
            let text = format!("{above}{branch}{}{gap}{}", module.name, parameters.join(", "));
            lines.push((times * module.trainable(), times * module.count(), text));
            module.lines(times * module.times, &format!("{above}{beneath}"), lines);
        }
    }
}

impl fmt::Display for TrainableTree {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let mut lines = vec![(self.trainable(), self.count(), "model".to_string())];
        self.lines(1, "", &mut lines);
        let width = thousands(self.count()).len().max("*trained".len());
        write!(f, "{:>width$}  {:>width$}", "*trained", "all")?;
        for (trained, all, text) in lines {
            write!(f, "\n{:>width$}  {:>width$}  {text}", thousands(trained), thousands(all))?;
        }
        Ok(())
    }
}
