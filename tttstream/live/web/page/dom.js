// Makes elements. Text only ever goes in as text, never as HTML.

export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "data") Object.assign(made.dataset, value);
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

export function svg(tag, attributes = {}) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

export function icon(name) {
  const made = svg("svg", { class: "icon", "aria-hidden": "true" });
  made.append(svg("use", { href: `#${name}` }));
  return made;
}

// A button with an icon. label: read out, and shown unless `bare`.
export function button(name, label, onclick, { bare = false, kind = "" } = {}) {
  const made = el("button", { type: "button", class: kind, title: label, onclick }, icon(name));
  if (bare) made.setAttribute("aria-label", label);
  else made.append(el("span", {}, label));
  return made;
}

// Sets the text of an element where it is another one: a browser lays out less.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Brings the children of a list in line with values: makes those that are new, removes those that are gone.
export function sync(list, values, key, make, change = () => {}) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  for (const value of values) {
    const name = String(key(value));
    let child = known.get(name);
    if (!child) {
      child = make(value);
      child.dataset.key = name;
      list.append(child);
    }
    known.delete(name);
    change(child, value);
  }
  for (const child of known.values()) child.remove();
}

let timer = 0;

// One line at the foot of the page for some seconds.
export function notice(text, bad = false) {
  const line = document.getElementById("notice");
  line.textContent = text;
  line.className = bad ? "shown alert" : "shown";
  clearTimeout(timer);
  timer = setTimeout(() => line.classList.remove("shown"), bad ? 6000 : 2500);
}

export function bytes(count) {
  if (count >= 1e6) return `${(count / 1e6).toFixed(1)} MB`;
  return count >= 1e3 ? `${Math.round(count / 1e3)} kB` : `${count} B`;
}

export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}
