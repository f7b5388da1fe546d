// Markdown as elements. Nothing a model writes is ever read as HTML: tokens become elements of a fixed list, whatever
// else there is becomes text, and links go to web pages and mail alone.
import { lexer, type Token, type Tokens } from "marked";
import { memo } from "preact/compat";
import type { ComponentChildren } from "preact";
import { t } from "./messages";
import { Copy } from "./parts";

const options = { gfm: true, breaks: false };

interface Blocks { text: string; tokens: Token[] }
const latest = new Map<string, Blocks>(); // the newest tokens of a text that grows, by its id

/** Only what follows the last block but one can be read otherwise once more text is there. */
function blocks(id: string, text: string, whole: boolean): Token[] {
  const had = latest.get(id);
  let tokens: Token[];
  if (!whole && had && had.tokens.length > 4 && text.startsWith(had.text)) {
    const settled = had.tokens.slice(0, -4);
    const length = settled.reduce((n, k) => n + k.raw.length, 0);
    tokens = [...settled, ...lexer(text.slice(length), options)];
  } else {
    tokens = lexer(text, options);
  }
  if (whole) latest.delete(id);
  else latest.set(id, { text, tokens });
  return tokens;
}

export function Markdown({ id, text, whole }: { id: string; text: string; whole: boolean }) {
  return <div class="markdown">{blocks(id, text, whole).map((k, i) => <Block key={i} token={k} raw={k.raw} />)}</div>;
}

/** A block stays as it is while its source does. */
const Block = memo(({ token }: { token: Token; raw: string }) => <>{element(token)}</>, (a, b) => a.raw === b.raw);

function all(list: Token[] | undefined): ComponentChildren {
  return list?.map(element);
}

const safe = (href: string) => /^(https?:|mailto:)/i.test(href.trim());

function element(k: Token): ComponentChildren {
  switch (k.type) {
    case "space": case "def": return null;
    case "hr": return <hr />;
    case "br": return <br />;
    case "heading": // h1 and h2 are the page's
      return <h3 class={`depth${(k as Tokens.Heading).depth}`}>{all(k.tokens)}</h3>;
    case "paragraph": return <p>{all(k.tokens)}</p>;
    case "blockquote": return <blockquote>{all(k.tokens)}</blockquote>;
    case "strong": return <strong>{all(k.tokens)}</strong>;
    case "em": return <em>{all(k.tokens)}</em>;
    case "del": return <del>{all(k.tokens)}</del>;
    case "codespan": return <code>{k.text}</code>;
    case "code": return <Code text={k.text} lang={(k as Tokens.Code).lang ?? ""} />;
    case "list": return <List list={k as Tokens.List} />;
    case "table": return <Table table={k as Tokens.Table} />;
    case "link": return safe(k.href) ? <Link href={k.href}>{all(k.tokens)}</Link> : <>{all(k.tokens)}</>;
    case "image": return safe(k.href) ? <Link href={k.href}>{k.text || k.href}</Link> : <>{k.text}</>;
    case "escape": return k.text;
    case "text": return k.tokens ? <>{all(k.tokens)}</> : k.text;
    default: return k.raw; // html, too
  }
}

function Link({ href, children }: { href: string; children: ComponentChildren }) {
  return <a href={href} target="_blank" rel="noopener noreferrer nofollow">{children}</a>;
}

function Code({ text, lang }: { text: string; lang: string }) {
  return (
    <figure class="code">
      <figcaption><span>{lang}</span><Copy text={text} label={t("copyCode")} /></figcaption>
      <pre tabIndex={0} aria-label={t("code")} role="region"><code>{text}</code></pre>
    </figure>
  );
}

function List({ list }: { list: Tokens.List }) {
  const items = list.items.map((item, i) => (
    <li key={i}>{item.task && <span aria-hidden="true">{item.checked ? "☑ " : "☐ "}</span>}{all(item.tokens)}</li>
  ));
  return list.ordered ? <ol start={Number(list.start) || 1}>{items}</ol> : <ul>{items}</ul>;
}

function Table({ table }: { table: Tokens.Table }) {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={t("table")}>
      <table>
        <thead><tr>{table.header.map((c, i) => <th key={i} scope="col">{all(c.tokens)}</th>)}</tr></thead>
        <tbody>{table.rows.map((r, i) => <tr key={i}>{r.map((c, j) => <td key={j}>{all(c.tokens)}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}
