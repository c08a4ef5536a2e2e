package dialect

import (
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// parseMount reads what is behind --mount=. Its fields have no quotes.
func parseMount(flag, text string, b *Base) (Mount, error) {
	m := Mount{Type: "bind"}
	var fields [][2]string
	for _, f := range strings.Split(text, ",") {
		key, value, _ := strings.Cut(f, "=")
		key = strings.ToLower(strings.TrimSpace(key))
		if key == "type" {
			m.Type = value
			continue
		}
		fields = append(fields, [2]string{key, value})
	}
	allowed := map[string][]string{
		"secret": {"id", "target", "required", "env", "mode", "uid", "gid"},
		"cache":  {"id", "target", "from", "source", "readonly", "sharing", "mode", "uid", "gid"},
		"bind":   {"target", "source", "from", "readonly"},
		"tmpfs":  {"target", "size"},
	}
	names, ok := allowed[m.Type]
	if !ok {
		e := b.Errorf(flag, "RUN --mount=type=%s is not supported", m.Type)
		if m.Type == "ssh" {
			return m, e.hint("give the key as a secret: --mount=type=secret,id=key,target=/root/.ssh/id_ed25519")
		}
		return m, e.hint("secret, cache, bind and tmpfs are")
	}
	for _, f := range fields {
		key, value := f[0], f[1]
		switch key {
		case "dst", "destination":
			key = "target"
		case "src":
			key = "source"
		case "ro":
			key = "readonly"
		case "rw", "readwrite":
			if m.Type != "bind" && m.Type != "cache" || value != "" && value != "true" {
				break
			}
			continue // what a step writes into a bind is gone afterwards
		}
		known := false
		for _, n := range names {
			known = known || n == key
		}
		if !known {
			e := b.Errorf(f[0], "--mount=type=%s has no %q", m.Type, f[0])
			if near := nearest(key, names); near != "" {
				return m, e.hint("%s is one", near)
			}
			return m, e.hint("it has %s", strings.Join(names, ", "))
		}
		switch key {
		case "id":
			m.ID = value
		case "target":
			m.Target = value
		case "source":
			m.Source = value
		case "from":
			m.From = value
		case "env":
			m.Env = value
		case "required", "readonly":
			on := value == "" || value == "true" || value == "1"
			if !on && !isBool(value) {
				return m, b.Errorf(value, "%s=%s: true or false", key, value)
			}
			if key == "required" {
				m.Required = on
			} else {
				m.ReadOnly = on
			}
		case "mode":
			n, err := strconv.ParseUint(value, 8, 16)
			if err != nil || n > 0o7777 {
				return m, b.Errorf(value, "mode=%s is no octal mode, as 0400", value)
			}
			mode := uint16(n)
			m.Mode = &mode
		case "uid", "gid":
			n, err := strconv.ParseUint(value, 10, 31)
			if err != nil {
				return m, b.Errorf(value, "%s=%s is no number", key, value)
			}
			id := uint32(n)
			if key == "uid" {
				m.UID = &id
			} else {
				m.GID = &id
			}
		}
	}
	switch {
	case m.Type == "secret" && m.ID == "" && m.Target == "":
		return m, b.Errorf(flag, "--mount=type=secret needs id=NAME")
	case m.Type == "secret" && m.ID == "":
		m.ID = m.Target[strings.LastIndexByte(m.Target, '/')+1:]
	case m.Type != "secret" && m.Target == "":
		return m, b.Errorf(flag, "--mount=type=%s needs target=PATH", m.Type)
	}
	return m, nil
}

func makeHealthcheck(n *parser.Node, b Base) (Instruction, error) {
	h := &Healthcheck{Base: b}
	for _, f := range n.Flags {
		name, value, _ := strings.Cut(strings.TrimPrefix(f, "--"), "=")
		if name == "retries" {
			r, err := strconv.ParseUint(value, 10, 16)
			if err != nil {
				return nil, b.Errorf(f, "HEALTHCHECK --retries=%s is no number", value)
			}
			h.Retries = int(r)
			continue
		}
		if name == "start-interval" {
			return nil, b.Errorf(f, "HEALTHCHECK --start-interval is not supported").hint("--interval counts from the start on")
		}
		into := map[string]*int64{"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod}[name]
		if into == nil {
			return nil, unknownFlag("HEALTHCHECK", f, name, &b, "interval", "timeout", "start-period", "retries")
		}
		d, err := time.ParseDuration(value)
		if err != nil || d < 0 || d > 0 && d < time.Millisecond {
			return nil, b.Errorf(f, "HEALTHCHECK --%s=%s is no time of at least 1ms", name, value).hint("as 30s or 1m30s")
		}
		*into = int64(d)
	}
	if n.Next == nil {
		return nil, errorf(b.Pos, "HEALTHCHECK needs NONE, or CMD and a command")
	}
	switch strings.ToUpper(n.Next.Value) {
	case "NONE":
		if len(n.Flags) > 0 || n.Next.Next != nil {
			return nil, errorf(b.Pos, "HEALTHCHECK NONE takes nothing else")
		}
		h.None = true
	case "CMD":
		c, ok := commandOf(n.Next.Next, n.Attributes["json"])
		if !ok || len(c.Argv) == 0 {
			return nil, errorf(b.Pos, "HEALTHCHECK CMD needs a command")
		}
		if err := almostJSON(c, b); err != nil {
			return nil, err
		}
		h.Command = c
	default:
		return nil, b.Errorf(n.Next.Value, "HEALTHCHECK %.20s is not known", n.Next.Value).hint("NONE, or CMD and a command")
	}
	return h, nil
}
