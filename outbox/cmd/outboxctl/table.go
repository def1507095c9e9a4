package main

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// column is how a column of a table is laid out.
type column struct {
	title string
	right bool // numbers
	flex  bool // gives way where the table is too wide
}

func left(title string) column  { return column{title: title} }
func right(title string) column { return column{title: title, right: true} }
func flex(title string) column  { return column{title: title, flex: true} }

// table is rows under titles. A column that is empty in every row is left out.
type table struct {
	columns []column
	rows    []row
}

type row struct {
	cells []string
	notes []string // lines under the row, indented
	color string
}

func newTable(columns ...column) *table { return &table{columns: columns} }

func (t *table) add(cells ...string) *row {
	t.rows = append(t.rows, row{cells: cells})
	return &t.rows[len(t.rows)-1]
}

// note adds a line under the row; an empty one is none.
func (r *row) note(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); text != "" {
		r.notes = append(r.notes, text)
	}
}

const (
	gap     = 2
	minFlex = 8
)

// lines are the table's, each at most width wide as far as the columns give way; a width of 0 is no limit.
func (t *table) lines(width int, color func(code, text string) string) []string {
	widths := t.widths(width)
	titles := make([]string, len(t.columns))
	for i, c := range t.columns {
		titles[i] = c.title
	}
	lines := []string{color(bold, t.line(titles, widths))}
	for _, r := range t.rows {
		line := t.line(r.cells, widths)
		if r.color != "" {
			line = color(r.color, line)
		}
		lines = append(lines, line)
		for _, n := range r.notes {
			if width > 0 {
				n = clip(n, width-4)
			}
			lines = append(lines, "    "+n)
		}
	}
	return lines
}

func (t *table) write(a *app, w io.Writer) {
	for _, line := range t.lines(a.width(), a.colored) {
		fmt.Fprintln(w, line)
	}
}

// widths are those of the columns; 0 leaves one out.
func (t *table) widths(limit int) []int {
	widths := make([]int, len(t.columns))
	total := -gap
	for i, c := range t.columns {
		for _, r := range t.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r.cells[i]))
		}
		if widths[i] > 0 {
			widths[i] = max(widths[i], utf8.RuneCountInString(c.title))
			total += widths[i] + gap
		}
	}
	for limit > 0 && total > limit {
		widest := -1
		for i, c := range t.columns {
			if c.flex && widths[i] > minFlex && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			break
		}
		widths[widest]--
		total--
	}
	return widths
}

func (t *table) line(cells []string, widths []int) string {
	var b strings.Builder
	for i, cell := range cells {
		if widths[i] == 0 {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(strings.Repeat(" ", gap))
		}
		cell = clip(cell, widths[i])
		pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell))
		if t.columns[i].right {
			cell = pad + cell
		} else {
			cell += pad
		}
		b.WriteString(cell)
	}
	return strings.TrimRight(b.String(), " ")
}

// clip shortens the text in the middle, where types and hosts differ least.
func clip(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	runes := []rune(text)
	if width < 2 {
		return string(runes[:max(width, 0)])
	}
	head := (width - 1) / 2
	return string(runes[:head]) + "…" + string(runes[len(runes)-(width-1-head):])
}

// plain makes a text from elsewhere fit to be shown on one line: no control characters, so that it cannot act on
// the terminal.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r == '\r':
			return ' '
		case r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069:
			return '�'
		}
		return r
	}, text)
}

// age is how long ago something was: 12s, 3m12s, 5h07m, 3d04h.
func (a *app) age(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	return duration(a.now().Sub(at))
}

// until is how long it is till then.
func (a *app) until(at time.Time) string {
	if at.IsZero() {
		return "-"
	}
	if d := at.Sub(a.now()); d > 0 {
		return "in " + duration(d)
	}
	return "now"
}

func duration(d time.Duration) string {
	switch d = max(d, 0); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%02dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// seconds is a duration that came as a number.
func seconds(s float64) string {
	if s < 1 {
		return "-"
	}
	return duration(time.Duration(s) * time.Second)
}

// count shows what is not known as "?" and nothing as "-", so that figures stand out.
func count(n int64) string {
	switch {
	case n < 0:
		return "?"
	case n == 0:
		return "-"
	}
	return fmt.Sprint(n)
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return fmt.Sprintf("%d %s", n, one)
	}
	return fmt.Sprintf("%d %s", n, many)
}

// short is an event type without what all have in common, for tables.
func dash(text string) string {
	if text == "" {
		return "-"
	}
	return plain(text)
}
