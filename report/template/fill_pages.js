// Fills the pages of the report: tries sizes of the charts and of the text, keeps those that leave the least room at the ends of the
// pages, and spreads what stands on a page over a part of that room.
//
// The body becomes a row of columns, each as large as the text of a page. A browser divides a text into columns by the same rules as
// into pages, but of columns it tells what stands where.
(() => {
  // What a chart may have of the text's width: below the first its labels are too small to read on paper, above the last it is coarse.
  const CHART_SIZES = [0.66, 0.7, 0.74, 0.78, 0.82, 0.86];
  // In points. The first that does well is taken.
  const TEXT_SIZES = [9.8, 10, 9.6, 9.4];
  // A page with less room than this at its end, as a share of its height, looks full.
  const LITTLE_ROOM = 0.22;
  // Only on paper does a divided table repeat its head: a column leaves this much room for it, in pixels.
  const TABLE_HEAD = 20;
  // What is added above each text of a page with at least so much room, in pixels at most, and as a share of the room all together:
  // margins that no longer fall into one take more than what is added.
  const LEAST_ROOM = 0.15;
  const MOST_ADDED = 24;
  const ADDED_SHARE = 0.6;
  const COLUMN_GAP = 40;
  const BLOCKS = "h1, h2, h3, h4, p, li, pre, tr, svg, img";

  const body = document.body.style;
  const paper = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).find((rule) => rule instanceof CSSPageRule).style;
  const pixels = (side, margins) => ((side - margins.reduce((sum, margin) => sum + parseFloat(paper[margin]), 0)) * 96) / 25.4;
  const width = pixels(210, ["marginLeft", "marginRight"]);
  const height = pixels(297, ["marginTop", "marginBottom"]) - TABLE_HEAD;
  const pageOf = (box) => Math.floor(box.left / (width + COLUMN_GAP));

  // The room left at the end of each page but the last, as a share of its height.
  function rooms() {
    const ends = [];
    for (const block of document.querySelectorAll(BLOCKS)) {
      for (const box of block.getClientRects()) ends[pageOf(box)] = Math.max(ends[pageOf(box)] ?? 0, box.bottom);
    }
    return Array.from(ends, (end) => 1 - (end ?? 0) / height).slice(0, -1);
  }

  function show(charts, { text, sizes }) {
    body.setProperty("--text-size", `${text}pt`);
    charts.forEach((chart, i) => chart.style.setProperty("--chart-size", sizes[i]));
  }

  // The best sizes of the charts beside a text of this size. All charts change together first, then two that may share a page, then each.
  function bestFor(text, charts) {
    let best = { text, sizes: charts.map(() => CHART_SIZES[0]), badness: Infinity };
    const numbers = charts.map((_, i) => i);
    for (const changed of [numbers, ...numbers.slice(1).map((i) => [i - 1, i]), ...numbers.map((i) => [i])]) {
      for (const size of CHART_SIZES) {
        const trial = { text, sizes: best.sizes.map((old, i) => (changed.includes(i) ? size : old)) };
        show(charts, trial);
        // A high power: one page half empty is worse than several a quarter empty.
        trial.badness = rooms().reduce((sum, room) => sum + room ** 4, 0);
        if (trial.badness < best.badness) best = trial;
      }
    }
    return best;
  }

  // The sections of each page but the last above which there may be more room: not what stands on top, nor code below its text.
  function sectionsByPage(pages) {
    const sections = Array.from({ length: pages }, () => []);
    for (const section of document.querySelectorAll(".prose, .cell + .cell")) {
      const box = section.getClientRects()[0];
      if (box && box.top > 1) sections[pageOf(box)]?.push(section);
    }
    return sections;
  }

  // Spreads the sections of a page over a part of the room that is left.
  function spread(sections, room) {
    if (room < LEAST_ROOM) return;
    const added = Math.min(MOST_ADDED, (ADDED_SHARE * room * height) / sections.length);
    for (const section of sections) section.style.paddingTop = `${added}px`;
  }

  // The blocks that begin a page.
  function firstBlocks() {
    const first = [];
    let last = 0;
    for (const block of document.querySelectorAll(BLOCKS)) {
      const pages = Array.from(block.getClientRects(), pageOf);
      if (pages.length > 0 && pages[0] > last) first.push(block);
      last = Math.max(last, ...pages);
    }
    return first;
  }

  function fill() {
    const columns = { width: `${width}px`, height: `${height}px`, columns: `${width}px auto`, columnGap: `${COLUMN_GAP}px`, columnFill: "auto" };
    Object.assign(body, columns);
    const charts = [...document.querySelectorAll(".figure")];
    let best = { badness: Infinity };
    for (const text of TEXT_SIZES) {
      const trial = bestFor(text, charts);
      if (trial.badness < best.badness) best = trial;
      show(charts, best);
      if (Math.max(...rooms()) < LITTLE_ROOM) break;
    }
    // All is measured before anything is moved.
    const left = rooms();
    const sections = sectionsByPage(left.length);
    const first = firstBlocks();
    // So the paper has the pages that the columns have. As at the top of a column, no margin stands above such a block.
    for (const block of first) Object.assign(block.style, { breakBefore: "page", marginTop: 0 });
    sections.forEach((ofPage, page) => spread(ofPage, left[page]));
    for (const property of Object.keys(columns)) body[property] = "";
  }

  // Once pictures have their sizes.
  addEventListener("load", fill);
})();
