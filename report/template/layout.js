// Lays out the pages of the report proper, as a typesetter does: where a figure or a table does not fit on the rest of its page, the text
// that follows it is taken before it; and of a few sizes of the text and the charts those are chosen that fill the pages, the last too.
//
// The report becomes a row of columns, each as large as the text of a page. A browser divides a text into columns by the same rules as
// into pages, but of columns it tells what stands where.
(() => {
  // In points, and as shares of the text's width; below the smallest, a chart's labels are too small to read on paper.
  const TEXT_SIZES = [10, 10.2, 9.8, 10.4, 9.6, 10.6, 9.4, 10.8, 11];
  const CHART_SIZES = [0.94, 1, 0.88];
  // A page with less room than this at its end, as a share of its height, looks full; the last may have more.
  const LITTLE_ROOM = 0.06;
  const LAST_ROOM = 0.3;
  // The report proper has no more pages than this, if any of the sizes allows it.
  const MOST_PAGES = 12;
  // So good an arrangement is taken at once: the sizes are listed from the best to the last resort.
  const LITTLE_BADNESS = 0.0005;
  // A figure or a table is taken past so many blocks at most.
  const MOST_PASSED = 8;
  // What a page's width and height may be rounded down by, in pixels: paper and columns have the same lines.
  const ROUNDING = 2;
  const COLUMN_GAP = 40;
  const SOFT_HYPHEN = "\u00ad";
  const BLOCKS = "h1, h2, h3, h4, p, li, pre, tr, svg, img, math[display=block], figcaption";

  const report = document.querySelector(".report");
  const appendix = document.querySelector(".appendix");
  const paper = [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).find((rule) => rule instanceof CSSPageRule).style;
  const pixels = (side, margins) => ((side - margins.reduce((sum, margin) => sum + parseFloat(paper[margin]), 0)) * 96) / 25.4;
  const width = pixels(210, ["marginLeft", "marginRight"]) - ROUNDING;
  const height = pixels(297, ["marginTop", "marginBottom"]) - ROUNDING;

  const isExhibit = (block) => block.classList.contains("exhibit");
  const isHeading = (block) => /^H\d$/.test(block.tagName);
  // A paragraph that a list or a formula goes on from.
  const leadsOn = (block) => block.matches("p:has(+ :is(ul, ol)), p:has(+ p > math[display=block]:only-child)");
  const boxes = (part) => [...part.getClientRects()];
  // What stands on a column's left side may be a rounding error to the left of it.
  const pageOf = (box) => Math.floor((box.left - report.getBoundingClientRect().left + COLUMN_GAP / 2) / (width + COLUMN_GAP));

  // The room left at the end of each page, as a share of its height.
  function rooms() {
    const top = report.getBoundingClientRect().top;
    const ends = [];
    for (const block of report.querySelectorAll(BLOCKS)) {
      for (const box of boxes(block)) ends[pageOf(box)] = Math.max(ends[pageOf(box)] ?? 0, box.bottom - top);
    }
    return Array.from(ends, (end) => 1 - (end ?? 0) / height);
  }

  // A high power: one page half empty is worse than several a quarter empty. A page too many is worse than anything.
  function badness() {
    const room = rooms();
    const tooMany = Math.max(0, room.length - MOST_PAGES);
    const last = Math.max(0, room.pop() - LAST_ROOM);
    return room.reduce((sum, share) => sum + share ** 4, tooMany + last ** 2);
  }

  // The room before a figure or a table that begins a page.
  function roomBefore(exhibit) {
    const previous = exhibit.previousElementSibling;
    const page = pageOf(boxes(exhibit)[0]);
    return previous && pageOf(boxes(previous).at(-1)) < page ? rooms()[page - 1] : 0;
  }

  // The last of the blocks that a figure or a table can be taken past next: a text, with the heading above it; no other of its kind, and
  // not the references.
  function following(exhibit) {
    let block = exhibit.nextElementSibling;
    if (block && isHeading(block)) block = block.nextElementSibling;
    while (block && leadsOn(block)) block = block.nextElementSibling;
    const stays = !block || isHeading(block) || block.matches(".references") || (isExhibit(block) && block.className === exhibit.className);
    return stays ? null : block;
  }

  // Takes it past as many blocks as leave the least room before it. What comes after it has not been placed yet, and says nothing.
  function place(exhibit) {
    let best = { after: exhibit.previousElementSibling, room: roomBefore(exhibit) };
    for (let passed = 0; passed < MOST_PASSED && roomBefore(exhibit) >= LITTLE_ROOM; passed++) {
      const block = following(exhibit);
      if (!block) break;
      block.after(exhibit);
      const trial = { after: block, room: roomBefore(exhibit) };
      if (trial.room < best.room) best = trial;
    }
    best.after.after(exhibit);
  }

  function show({ order, text, chart }) {
    report.append(...order);
    report.style.setProperty("--text-size", `${text}pt`);
    report.style.setProperty("--chart-size", chart);
  }

  // The blocks that begin a page.
  function firstBlocks() {
    const first = [];
    let last = 0;
    for (const block of report.querySelectorAll(`${BLOCKS}, .exhibit`)) {
      if (block.parentElement.closest(".exhibit")) continue;
      const pages = boxes(block).map(pageOf);
      if (pages.length > 0 && pages[0] > last) first.push(block);
      last = Math.max(last, ...pages);
    }
    return first;
  }

  // Takes away the soft hyphens at which no line ends: they are not seen, and yet stand between the letters of who searches the PDF.
  function dropUnusedHyphens() {
    const range = document.createRange();
    const boxAt = (node, index) => {
      range.setStart(node, index);
      range.setEnd(node, index + 1);
      return boxes(range).at(-1);
    };
    const endsLine = (node, index) => {
      const [before, after] = [boxAt(node, index - 1), boxAt(node, index + 1)];
      return before && after && (after.top >= before.bottom || after.left < before.left || pageOf(after) > pageOf(before));
    };
    const changed = [];
    const nodes = document.createTreeWalker(report, NodeFilter.SHOW_TEXT);
    while (nodes.nextNode()) {
      const node = nodes.currentNode;
      const kept = [...node.data].filter((letter, index) => letter !== SOFT_HYPHEN || endsLine(node, index)).join("");
      if (kept !== node.data) changed.push([node, kept]);
    }
    // All is measured before anything is moved. With fewer places to choose from, some lines may end elsewhere.
    for (const [node, kept] of changed) node.data = kept;
    if (changed.length > 0) dropUnusedHyphens();
  }

  function layOut() {
    const columns = { width: `${width}px`, height: `${height}px`, columns: `${width}px auto`, columnGap: `${COLUMN_GAP}px`, columnFill: "auto" };
    Object.assign(report.style, columns);
    appendix.style.display = "none";
    const written = [...report.children];
    let best = { badness: Infinity };
    for (const [text, chart] of TEXT_SIZES.flatMap((text) => CHART_SIZES.map((chart) => [text, chart]))) {
      show({ order: written, text, chart });
      written.filter(isExhibit).forEach(place);
      const trial = { order: [...report.children], text, chart, badness: badness() };
      if (trial.badness < best.badness) best = trial;
      if (best.badness < LITTLE_BADNESS) break;
    }
    show(best);
    dropUnusedHyphens();
    // So the paper has the pages that the columns have. As at the top of a column, no margin stands above such a block.
    for (const block of firstBlocks()) Object.assign(block.style, { breakBefore: "page", marginTop: 0 });
    for (const property of ["height", "columns", "columnGap", "columnFill"]) report.style[property] = "";
    appendix.style.display = "";
  }

  // Once pictures have their sizes.
  addEventListener("load", layOut);
})();
