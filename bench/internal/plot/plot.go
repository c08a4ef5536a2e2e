// Package plot draws figures as SVG 1.1, the same bytes for the same values.
package plot

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"math"
	"slices"
	"strconv"
)

// Sizes in SVG's units.
const (
	width, height     = 760, 400
	left, right       = 70, 20
	top, bottom       = 40, 50
	barHeight, barGap = 26, 14
	legendLine        = 18
	ticks             = 6 // about as many on an axis
)

// colours are Okabe and Ito's, then some of Tol's, which people who see colours differently tell apart.
func colours() []string {
	return []string{"#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000", "#999999", "#882255", "#44AA99", "#DDCC77"}
}

func colour(i int) string { c := colours(); return c[i%len(c)] }

// Part is a piece of a bar, in the bar's unit.
type Part struct {
	Name  string
	Value float64
}

// Bar is made of parts, from left to right.
type Bar struct {
	Name  string
	Parts []Part
}

// Line is points (x, y) in the order in which they are joined.
type Line struct {
	Name   string
	Points [][2]float64
}

// Distribution is the part of values at or below each, in steps: what CDF draws.
func Distribution(values []float64) (out [][2]float64) {
	s := slices.Sorted(slices.Values(values))
	for i, v := range s {
		out = append(out, [2]float64{v, float64(i) / float64(len(s))}, [2]float64{v, float64(i+1) / float64(len(s))})
	}
	return out
}

type svg struct{ bytes.Buffer }

func begin(w, h float64, title string) *svg {
	s := new(svg)
	fmt.Fprintf(s, `<svg xmlns="http://www.w3.org/2000/svg" width="%s" height="%s" viewBox="0 0 %s %s" font-family="sans-serif" font-size="12">`+"\n", num(w), num(h), num(w), num(h))
	fmt.Fprintf(s, "<title>%s</title>\n", escape(title))
	fmt.Fprintf(s, `<rect width="%s" height="%s" fill="#ffffff"/>`+"\n", num(w), num(h))
	s.text(w/2, 22, "middle", title)
	return s
}

func (s *svg) end() []byte {
	s.WriteString("</svg>\n")
	return s.Bytes()
}

func (s *svg) text(x, y float64, anchor, t string) {
	fmt.Fprintf(s, `<text x="%s" y="%s" text-anchor="%s">%s</text>`+"\n", num(x), num(y), anchor, escape(t))
}

func (s *svg) line(x1, y1, x2, y2 float64, stroke string) {
	fmt.Fprintf(s, `<line x1="%s" y1="%s" x2="%s" y2="%s" stroke="%s"/>`+"\n", num(x1), num(y1), num(x2), num(y2), stroke)
}

func (s *svg) rect(x, y, w, h float64, fill, title string) {
	fmt.Fprintf(s, `<rect x="%s" y="%s" width="%s" height="%s" fill="%s"><title>%s</title></rect>`+"\n", num(x), num(y), num(w), num(h), fill, escape(title))
}

// num is a coordinate: a tenth of a unit is finer than a screen.
func num(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		v = 0
	}
	return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64)
}

func escape(t string) string {
	var b bytes.Buffer
	_ = xml.EscapeText(&b, []byte(t)) // a buffer takes everything
	return b.String()
}

// axis maps values to a range of coordinates, with round ticks.
type axis struct {
	top, step  float64 // the greatest tick, and between two
	from, size float64 // coordinates; size may be negative
	low        float64 // the least tick of a logarithmic axis; 0 for a linear one
}

// logFrom is how many times the least line the greatest one has to be for a
// logarithmic axis: on a linear one the least would lie on the other axis.
const logFrom = 15

// decades are the most that an axis has; what is less lies at its beginning.
const decades = 7

// logAxis has a tick for each power of ten.
func logAxis(least, greatest, from, size float64) axis {
	least = max(least, greatest*math.Pow(10, 1-decades))
	power := func(v float64, round func(float64) float64) float64 {
		return math.Pow(10, round(math.Log10(min(max(v, 1e-100), 1e100))))
	}
	return axis{top: power(greatest, math.Ceil), from: from, size: size, low: power(least, math.Floor)}
}

func newAxis(greatest, from, size float64) axis {
	if !(greatest > 0) {
		greatest = 1
	}
	// Beyond these the step would be 0, or the top without end.
	greatest = min(max(greatest, 1e-100), 1e100)
	step := math.Pow(10, math.Floor(math.Log10(greatest/ticks)))
	for _, m := range []float64{1, 2, 5, 10} {
		if greatest/(step*m) <= ticks {
			step *= m
			break
		}
	}
	return axis{top: math.Ceil(greatest/step) * step, step: step, from: from, size: size}
}

func (a axis) at(v float64) float64 {
	if a.low > 0 {
		return a.from + max(0, min(math.Log(v/a.low)/math.Log(a.top/a.low), 1))*a.size
	}
	return a.from + min(v/a.top, 1)*a.size
}

func (a axis) ticks() (out []float64) {
	if a.low > 0 {
		for v := a.low; v <= a.top*1.0001; v *= 10 {
			out = append(out, v)
		}
		return out
	}
	for i := 0; float64(i)*a.step <= a.top*1.0001 && i <= 2*ticks; i++ {
		out = append(out, float64(i)*a.step)
	}
	return out
}

func label(v float64) string { return strconv.FormatFloat(v, 'g', 6, 64) }

// finite leaves out points that have no place.
func finite(ls []Line) (out []Line, x, y float64) {
	for _, l := range ls {
		keep := Line{Name: l.Name}
		for _, p := range l.Points {
			if math.IsNaN(p[0]) || math.IsNaN(p[1]) || math.IsInf(p[0], 0) || math.IsInf(p[1], 0) {
				continue
			}
			keep.Points = append(keep.Points, p)
			x, y = max(x, p[0]), max(y, p[1])
		}
		out = append(out, keep)
	}
	return out, x, y
}

// Lines draws a line for each program, from zero on both axes unless the lines
// lie far apart.
func Lines(title, xName, yName string, ls []Line) []byte {
	ls, xMax, yMax := finite(ls)
	x, y := newAxis(xMax, across, acrossSize), newAxis(yMax, up, upSize)
	if apart(ls, 1) {
		y, yName = logAxis(lowest(ls, 1), yMax, up, upSize), yName+", logarithmic"
	}
	return lines(title, xName, yName, ls, x, y)
}

// CDF draws distributions: how large a part of the runs took at most so much.
func CDF(title, unit string, ls []Line) []byte {
	ls, xMax, _ := finite(ls)
	x, y := newAxis(xMax, across, acrossSize), newAxis(1, up, upSize)
	if apart(ls, 0) {
		x, unit = logAxis(lowest(ls, 0), xMax, across, acrossSize), unit+", logarithmic"
	}
	return lines(title, unit, "part of the runs", ls, x, y)
}

// apart says that the middles of lines lie too far apart, along one of the axes, for
// a linear one.
func apart(ls []Line, along int) bool {
	least, greatest := math.Inf(1), 0.0
	for _, l := range ls {
		if len(l.Points) > 0 {
			m := l.Points[len(l.Points)/2][along]
			least, greatest = min(least, m), max(greatest, m)
		}
	}
	return least > 0 && greatest > logFrom*least
}

// lowest is the least value above zero along one of the axes.
func lowest(ls []Line, along int) float64 {
	least := math.Inf(1)
	for _, l := range ls {
		for _, p := range l.Points {
			if p[along] > 0 {
				least = min(least, p[along])
			}
		}
	}
	return least
}

// Where axes begin, and how long they are.
const (
	across, acrossSize = left, width - left - right
	up, upSize         = height - bottom, -(height - top - bottom)
)

func lines(title, xName, yName string, ls []Line, x, y axis) []byte {
	h := height + legendLine*float64(len(ls))
	s := begin(width, h, title)
	for _, v := range x.ticks() {
		s.line(x.at(v), top, x.at(v), height-bottom, "#dddddd")
		s.text(x.at(v), height-bottom+16, "middle", label(v))
	}
	for _, v := range y.ticks() {
		s.line(left, y.at(v), width-right, y.at(v), "#dddddd")
		s.text(left-6, y.at(v)+4, "end", label(v))
	}
	s.text((left+width-right)/2, height-bottom+34, "middle", xName)
	fmt.Fprintf(s, `<text transform="translate(16 %s) rotate(-90)" text-anchor="middle">%s</text>`+"\n", num((top+height-bottom)/2), escape(yName))
	for i, l := range ls {
		fmt.Fprintf(s, `<polyline fill="none" stroke="%s" stroke-width="1.8" points="`, colour(i))
		for j, p := range l.Points {
			if j > 0 {
				s.WriteByte(' ')
			}
			fmt.Fprintf(s, "%s,%s", num(x.at(p[0])), num(y.at(p[1])))
		}
		s.WriteString("\"/>\n")
		s.legend(i, height+legendLine*float64(i), l.Name)
	}
	return s.end()
}

func (s *svg) legend(i int, y float64, name string) {
	s.rect(left, y-10, 12, 12, colour(i), name)
	s.text(left+18, y, "start", name)
}

// Stacked draws bars of parts. Parts of a name have a colour in all bars.
func Stacked(title, unit string, bars []Bar) []byte {
	var names []string
	most := 0.0
	for _, b := range bars {
		sum := 0.0
		for _, p := range b.Parts {
			if !slices.Contains(names, p.Name) {
				names = append(names, p.Name)
			}
			sum += size(p)
		}
		most = max(most, sum)
	}
	const names0 = 190 // room for the names of bars
	plotEnd := top + float64(len(bars))*(barHeight+barGap)
	s := begin(width, plotEnd+bottom+legendLine*float64(len(names)), title)
	x := newAxis(most, names0, width-names0-right)
	for _, v := range x.ticks() {
		s.line(x.at(v), top, x.at(v), plotEnd, "#dddddd")
		s.text(x.at(v), plotEnd+16, "middle", label(v))
	}
	s.text((names0+width-right)/2, plotEnd+34, "middle", unit)
	for i, b := range bars {
		y := top + float64(i)*(barHeight+barGap) + barGap/2
		s.text(names0-8, y+barHeight/2+4, "end", b.Name)
		at := 0.0
		for _, p := range b.Parts {
			v := size(p)
			s.rect(x.at(at), y, x.at(at+v)-x.at(at), barHeight, colour(slices.Index(names, p.Name)), fmt.Sprintf("%s: %.3g %s", p.Name, v, unit))
			at += v
		}
	}
	for i, n := range names {
		s.legend(i, plotEnd+bottom+legendLine*float64(i), n)
	}
	return s.end()
}

// size of a part: what was measured as less than nothing takes no room.
func size(p Part) float64 {
	if p.Value > 0 && !math.IsInf(p.Value, 0) {
		return p.Value
	}
	return 0
}
