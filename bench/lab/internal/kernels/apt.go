package kernels

import (
	"bufio"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// aptSource is one entry of apt's configuration.
type aptSource struct {
	uris, suites, components []string
	options                  []string // deb822 lines that belong to the archive: Signed-By and the like
}

// Backports gives the deb822 text that adds the backports of the Debian release codename from the mirror that the
// machine already uses for the release itself; present says that they are configured already. Files are those of
// /etc/apt/sources.list and sources.list.d, by name.
func Backports(files map[string]string, codename string) (text string, present bool, err error) {
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var all []aptSource
	for _, n := range names {
		switch path.Ext(n) {
		case ".sources":
			all = append(all, parseDeb822(files[n])...)
		case ".list":
			all = append(all, parseList(files[n])...)
		}
	}
	for _, s := range all {
		if slices.Contains(s.suites, codename+"-backports") {
			return "", true, nil
		}
	}
	for _, s := range all {
		if !slices.Contains(s.suites, codename) || !slices.Contains(s.components, "main") {
			continue
		}
		var b strings.Builder
		fmt.Fprintf(&b, "Types: deb\nURIs: %s\nSuites: %s-backports\nComponents: main\n", strings.Join(s.uris, " "), codename)
		for _, o := range s.options {
			fmt.Fprintln(&b, o)
		}
		return b.String(), false, nil
	}
	return "", false, fmt.Errorf("no apt source on this machine offers the main component of %s", codename)
}

// parseDeb822 reads a .sources file (sources.list(5), DEB822-STYLE FORMAT): stanzas of fields, continued by a leading space.
func parseDeb822(text string) []aptSource {
	var all []aptSource
	for stanza := range strings.SplitSeq(text+"\n", "\n\n") {
		fields := map[string]string{}
		last := ""
		sc := bufio.NewScanner(strings.NewReader(stanza))
		for sc.Scan() {
			line := sc.Text()
			if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
				continue
			}
			if line[0] == ' ' || line[0] == '\t' {
				fields[last] += "\n" + line
				continue
			}
			k, v, _ := strings.Cut(line, ":")
			last = strings.ToLower(k)
			fields[last] = strings.TrimSpace(v)
		}
		if !slices.Contains(strings.Fields(fields["types"]), "deb") || strings.EqualFold(fields["enabled"], "no") {
			continue
		}
		s := aptSource{
			uris:       strings.Fields(fields["uris"]),
			suites:     strings.Fields(fields["suites"]),
			components: strings.Fields(fields["components"]),
		}
		for _, o := range [][2]string{{"signed-by", "Signed-By"}, {"trusted", "Trusted"}, {"check-valid-until", "Check-Valid-Until"}} {
			if v := fields[o[0]]; v != "" {
				s.options = append(s.options, o[1]+": "+v)
			}
		}
		all = append(all, s)
	}
	return all
}

var listRE = regexp.MustCompile(`^deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)$`)

// parseList reads a .list file: lines "deb [options] uri suite component…".
func parseList(text string) []aptSource {
	var all []aptSource
	for line := range strings.SplitSeq(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		m := listRE.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil {
			continue
		}
		s := aptSource{uris: []string{m[2]}, suites: []string{m[3]}, components: strings.Fields(m[4])}
		for o := range strings.FieldsSeq(m[1]) {
			k, v, _ := strings.Cut(o, "=")
			switch strings.ToLower(k) {
			case "signed-by":
				s.options = append(s.options, "Signed-By: "+strings.ReplaceAll(v, ",", " "))
			case "trusted":
				s.options = append(s.options, "Trusted: "+v)
			case "check-valid-until":
				s.options = append(s.options, "Check-Valid-Until: "+v)
			}
		}
		all = append(all, s)
	}
	return all
}
