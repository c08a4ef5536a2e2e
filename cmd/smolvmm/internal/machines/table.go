package machines

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// View is a machine as ps, inspect and stats show it. Sizes are bytes.
type View struct {
	Name    string   `json:"name"`
	Image   string   `json:"image"`
	State   State    `json:"state"`
	Ready   bool     `json:"ready"`
	PID     int      `json:"pid,omitempty"`
	Created string   `json:"created,omitempty"` // RFC 3339
	Started string   `json:"started,omitempty"`
	Uptime  float64  `json:"uptime_seconds"`
	CPU     float64  `json:"cpu_seconds"`
	CPUs    int      `json:"cpus"`
	Used    uint64   `json:"memory_used_bytes"`
	Memory  uint64   `json:"memory_bytes"`
	Ports   []string `json:"ports"`
	// Status and How are of a machine that is over.
	Status *int   `json:"status,omitempty"`
	How    string `json:"how,omitempty"`
	Socket string `json:"socket,omitempty"`
	Log    string `json:"console_log,omitempty"`
}

// View puts together what is known at a time.
func (m *Machine) View(now time.Time) View {
	v := View{
		Name: m.Spec.Name, Image: m.Spec.Image, State: m.State(), Ready: m.Ready,
		CPUs: m.Spec.CPUs, Memory: m.Spec.Memory, Ports: append([]string{}, m.Addrs...), Log: m.Console(),
	}
	if v.Image == "" {
		v.Image = m.Spec.Kernel
	}
	if !m.Spec.Created.IsZero() {
		v.Created = m.Spec.Created.UTC().Format(time.RFC3339)
	}
	if !m.Started.IsZero() {
		v.Started = m.Started.UTC().Format(time.RFC3339Nano)
	}
	if !m.Alive {
		v.Ports = []string{}
		v.How = m.How()
		if m.Last.State == Ended {
			status := m.Last.Status
			v.Status = &status
		}
		// Of one that was killed nobody knows for how long it ran.
		if m.Last.State == Ended && !m.Started.IsZero() && m.Last.Time.After(m.Started) {
			v.Uptime = m.Last.Time.Sub(m.Started).Seconds()
		}
		return v
	}
	v.PID, v.Socket = m.PID, m.Spec.Socket
	if !m.Started.IsZero() {
		v.Uptime = max(0, now.Sub(m.Started).Seconds())
	}
	if u, err := m.Usage(); err == nil {
		v.CPU, v.Used = u.CPU.Seconds(), u.Resident
	}
	return v
}

// Table writes machines as a table.
func Table(w io.Writer, vs []View) error {
	rows := [][]string{{"NAME", "IMAGE", "STATE", "UPTIME", "CPU", "MEMORY", "PORTS"}}
	for _, v := range vs {
		state, cpu, mem := string(v.State), "-", "-"
		switch {
		case v.Status != nil:
			state = fmt.Sprintf("ended (%d)", *v.Status)
		case v.State == Running && v.Ready:
			state = "ready"
		}
		if v.PID != 0 {
			if v.Uptime > 0 {
				cpu = fmt.Sprintf("%.1f%%", 100*v.CPU/v.Uptime)
			}
			mem = Size(v.Used) + " / " + Size(v.Memory)
		}
		up := "-"
		if v.Uptime > 0 {
			up = Uptime(time.Duration(v.Uptime * float64(time.Second)))
		}
		rows = append(rows, []string{v.Name, Short(v.Image, 40), state, up, cpu, mem, strings.Join(v.Ports, ", ")})
	}
	return Columns(w, rows)
}

// Columns writes rows with their columns under one another.
func Columns(w io.Writer, rows [][]string) error {
	var widths []int
	for _, r := range rows {
		for i, s := range r {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(s))
		}
	}
	for _, r := range rows {
		var line strings.Builder
		for i, s := range r {
			line.WriteString(s)
			line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s)+2))
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(line.String(), " ")); err != nil {
			return err
		}
	}
	return nil
}

// Short cuts a text to n characters and takes out what would steer a terminal.
func Short(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
	if rs := []rune(s); len(rs) > n {
		return "…" + string(rs[len(rs)-n+1:])
	}
	return s
}

// Size writes a number of bytes for people.
func Size(n uint64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%.0fG", float64(n)/(1<<30))
	case n >= 1<<30:
		return fmt.Sprintf("%.1fG", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.0fM", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.0fK", float64(n)/(1<<10))
}

// Uptime writes a length of time for people, with its two largest units.
func Uptime(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
}
