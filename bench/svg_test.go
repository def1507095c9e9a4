package bench

import (
	"fmt"
	"math"
	"os"
	"strings"
)

// The plots are plain SVG with colours that are readable on light and on dark ground.
const (
	plotWidth, plotHeight = 720, 300
	ink                   = "#808890"
)

var colours = []string{"#2f81f7", "#d29922", "#8b949e", "#3fb950"}

type canvas struct{ strings.Builder }

func newCanvas(title string) *canvas {
	c := &canvas{}
	fmt.Fprintf(c, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="13" fill="%s">`+"\n", plotWidth, plotHeight, ink)
	c.text(16, 24, "start", "<tspan font-weight=\"bold\">"+title+"</tspan>")
	return c
}

func (c *canvas) text(x, y float64, anchor, text string) {
	fmt.Fprintf(c, `<text x="%.1f" y="%.1f" text-anchor="%s">%s</text>`+"\n", x, y, anchor, text)
}

func (c *canvas) line(x1, y1, x2, y2 float64) {
	fmt.Fprintf(c, `<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s" stroke-opacity="0.3"/>`+"\n", x1, y1, x2, y2, ink)
}

func (c *canvas) save(file string) error {
	c.WriteString("</svg>\n")
	return os.WriteFile(file, []byte(c.String()), 0o644)
}

// plotDrain draws the rates of the drain row as bars.
func plotDrain(r *Row) error {
	if r == nil || r.Error != "" {
		return nil
	}
	c := newCanvas("Relaying a backlog, messages per second")
	var bars []Figure
	most := 0.0
	for _, f := range r.Figures {
		if f.Unit == "messages/s" && !strings.Contains(f.Name, "processes") {
			bars, most = append(bars, f), max(most, f.Value)
		}
	}
	for i, f := range bars {
		y := 50 + 58*float64(i)
		width := (plotWidth - 300) * f.Value / most
		c.text(180, y+24, "end", f.Name)
		fmt.Fprintf(c, `<rect x="190" y="%.1f" width="%.1f" height="36" rx="3" fill="%s"/>`+"\n", y, max(1, width), colours[i%len(colours)])
		c.text(198+width, y+24, "start", fmt.Sprintf("%.0f", f.Value))
	}
	return c.save("results/drain.svg")
}

// plotLatency draws the distributions of the latency row over a logarithmic axis.
func plotLatency(r *Row) error {
	if r == nil || r.Error != "" || len(r.Series) == 0 {
		return nil
	}
	const left, right, top, bottom = 50.0, plotWidth - 150.0, 45.0, plotHeight - 40.0
	low, high := math.Log10(0.2), math.Log10(2000)
	x := func(ms float64) float64 {
		return left + (right-left)*(min(max(math.Log10(max(ms, 0.001)), low), high)-low)/(high-low)
	}
	y := func(q float64) float64 { return bottom - (bottom-top)*q }
	c := newCanvas("From commit to delivery: share of events within a time")
	for _, ms := range []float64{0.2, 1, 5, 10, 100, 1000} {
		c.line(x(ms), top, x(ms), bottom)
		c.text(x(ms), bottom+18, "middle", fmt.Sprintf("%g ms", ms))
	}
	for _, q := range []float64{0, 0.5, 0.9, 1} {
		c.line(left, y(q), right, y(q))
		c.text(left-6, y(q)+4, "end", fmt.Sprintf("%.0f %%", 100*q))
	}
	for i, name := range []string{"relay", "straight", "stock forwarder"} {
		var points []string
		for j, ms := range r.Series[name] {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(ms), y(percentiles[j])))
		}
		fmt.Fprintf(c, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2.5"/>`+"\n", strings.Join(points, " "), colours[i])
		fmt.Fprintf(c, `<rect x="%.1f" y="%.1f" width="12" height="12" fill="%s"/>`+"\n", right+14, top+22*float64(i), colours[i])
		c.text(right+32, top+11+22*float64(i), "start", name)
	}
	return c.save("results/latency.svg")
}
