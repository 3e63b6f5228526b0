//! The page's one copy of plotly.js.

use std::path::{Path, PathBuf};

use crate::display::print_bundle;

/// plotly.js, or why there is none: then charts show as still images.
#[derive(Clone, Debug)]
pub struct PlotlyJs(Result<String, String>);

/// The copy of plotly.js that the variable `LAB_PLOTLY_JS` names, or the one in the project's Python environment.
pub fn plotly_js() -> PlotlyJs {
    let path = std::env::var_os("LAB_PLOTLY_JS").map(PathBuf::from).or_else(installed);
    let Some(path) = path else {
        return PlotlyJs(Err("no plotly.js found, so charts show as still images; `make setup` installs it".into()));
    };
    PlotlyJs(std::fs::read_to_string(&path).map_err(|error| {
        format!("{}: {error}; charts show as still images. Correct LAB_PLOTLY_JS, or unset it", path.display())
    }))
}

/// `.venv/lib/python3.*/site-packages/plotly/package_data/plotly.min.js` of the project.
fn installed() -> Option<PathBuf> {
    let libraries = glue::project_root().join(".venv/lib");
    let pythons = std::fs::read_dir(libraries).ok()?;
    let script = |python: &Path| python.join("site-packages/plotly/package_data/plotly.min.js");
    pythons.flatten().map(|python| script(&python.path())).find(|path| path.is_file())
}

impl PlotlyJs {
    /// Called by the notebook when this is a cell's result.
    pub fn evcxr_display(&self) {
        match &self.0 {
            // A module loader on the page would keep the library to itself: hidden from it, it becomes a global.
            Ok(script) => {
                let script = script.replace("</script", "<\\/script");
                let html = format!(
                    "<script>(function(){{var define=undefined,module=undefined,exports=undefined;{script}\n}})\
                     .call(window);</script><p>Charts are interactive.</p>"
                );
                print_bundle(&[("text/html", &html), ("text/plain", "Charts are interactive.")]);
            }
            Err(reason) => print_bundle(&[("text/plain", reason)]),
        }
    }
}
