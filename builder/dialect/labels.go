package dialect

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Labels are what LABEL smolbsd.* asks for.
type Labels struct {
	Service  string // the image's name, where nothing else gives one
	Minimize bool   // the file system has its content and a tenth more, or Extra
	Extra    int64  // MiB of free space besides the content, from minimize=+N
	ImgSize  int64  // MiB of the whole image, or 0
	Publish  []Port
	UsePTY   bool
	AddPkgs  []string // pkgsrc's packages to unpack, nil where nothing is said
	// KeepInit leaves the image its own /sbin/init, whatever it is.
	KeepInit bool
	Layout   string // "ffs" or "gpt", or "" where nothing is said
}

// maxImage bounds imgsize and minimize in MiB: what the FFS writer can make.
const maxImage = 1 << 20

// ReadLabels takes them from an image's labels. An error names the label.
func ReadLabels(labels map[string]string) (Labels, error) {
	var l Labels
	for _, name := range []string{"service", "minimize", "imgsize", "publish", "use_pty", "addpkgs"} {
		value, ok := labels["smolbsd."+name]
		if !ok {
			continue
		}
		if err := l.set(name, value); err != nil {
			return l, fmt.Errorf("LABEL smolbsd.%s=%.60q: %w", name, value, err)
		}
	}
	switch v := labels["smolvmm.init"]; v {
	case "", "smolinit":
	case "keep":
		l.KeepInit = true
	default:
		return l, fmt.Errorf("LABEL smolvmm.init=%.60q: it must be smolinit or keep", v)
	}
	switch v := labels["smolvmm.layout"]; v {
	case "", "ffs", "gpt":
		l.Layout = v
	default:
		return l, fmt.Errorf("LABEL smolvmm.layout=%.60q: it must be ffs or gpt", v)
	}
	switch v := labels["smolvmm.quoting"]; v {
	case "", "docker", "smolbsd":
	default:
		return l, fmt.Errorf("LABEL smolvmm.quoting=%.60q: it must be docker or smolbsd", v)
	}
	return l, nil
}

func (l *Labels) set(name, value string) error {
	switch name {
	case "service":
		for _, c := range value {
			if !(c == '_' || c == '-' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z') {
				return errors.New("a name has letters, digits, dots, hyphens and underscores")
			}
		}
		if value == "" || len(value) > 64 || strings.ContainsRune(".-", rune(value[0])) {
			return errors.New("a name has 1 to 64 characters and begins with a letter or digit")
		}
		l.Service = value
	case "minimize":
		if extra, ok := strings.CutPrefix(value, "+"); ok {
			n, err := megabytes(extra)
			if err != nil {
				return err
			}
			l.Minimize, l.Extra = true, n
			return nil
		}
		on, err := yes(value)
		l.Minimize = on
		return err
	case "imgsize":
		n, err := megabytes(value)
		if err == nil && n == 0 {
			err = errors.New("an image of no size")
		}
		l.ImgSize = n
		return err
	case "use_pty":
		on, err := yes(value)
		l.UsePTY = on
		return err
	case "publish":
		for _, p := range strings.FieldsFunc(value, func(r rune) bool { return r == ',' || r == ' ' }) {
			ports, err := parsePort(p)
			if err != nil {
				return err
			}
			if ports[0].Host == 0 {
				return fmt.Errorf("%s has no port of the host's: as 8080:%s", p, p)
			}
			l.Publish = append(l.Publish, ports...)
		}
	case "addpkgs":
		l.AddPkgs = []string{}
		for _, p := range strings.Fields(value) {
			if strings.ContainsAny(p, "/\\*?[]") || strings.HasPrefix(p, ".") || strings.HasPrefix(p, "-") {
				return fmt.Errorf("%q is no name of a package", p)
			}
			l.AddPkgs = append(l.AddPkgs, p)
		}
	}
	return nil
}

func yes(s string) (bool, error) {
	switch strings.ToLower(s) {
	case "y", "yes", "true", "1":
		return true, nil
	case "n", "no", "false", "0", "":
		return false, nil
	}
	return false, errors.New("it must be y or n")
}

func megabytes(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxImage {
		return 0, fmt.Errorf("it must be a number of megabytes up to %d", maxImage)
	}
	return n, nil
}

// smolBSDQuoting says how a stage's shell text is to be taken.
func smolBSDQuoting(s *Stage) bool {
	smol := false
	for _, in := range s.Steps {
		l, ok := in.(*Label)
		if !ok {
			continue
		}
		for _, p := range l.Pairs {
			value := strings.Trim(p.Value, `"'`)
			switch strings.Trim(p.Name, `"'`) {
			case "smolvmm.quoting":
				return value == "smolbsd"
			case "smolbsd.service":
				smol = true
			}
		}
	}
	return smol
}
