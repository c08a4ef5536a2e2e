package image

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// ModuleDeps is what modules.dep and modules.builtin say.
type ModuleDeps struct {
	paths   map[string]string   // module name to path
	deps    map[string][]string // path to the paths it needs, as modules.dep lists them
	builtin map[string]bool
}

// ParseModules reads the contents of modules.dep ("path: path…", as depmod writes it) and modules.builtin (a path a line).
func ParseModules(dep, builtin string) (*ModuleDeps, error) {
	d := &ModuleDeps{paths: map[string]string{}, deps: map[string][]string{}, builtin: map[string]bool{}}
	for i, line := range strings.Split(dep, "\n") {
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		p, needs, ok := strings.Cut(line, ":")
		if !ok {
			return nil, fmt.Errorf("modules.dep line %d has no colon: %.80q", i+1, line)
		}
		d.paths[moduleName(p)] = p
		d.deps[p] = strings.Fields(needs)
	}
	for line := range strings.FieldsSeq(builtin) {
		d.builtin[moduleName(line)] = true
	}
	return d, nil
}

// moduleName gives a module's name from its name or path: without folder and suffix, and with _ for the - that the
// kernel holds equal.
func moduleName(p string) string {
	n, _, _ := strings.Cut(path.Base(p), ".ko")
	return strings.ReplaceAll(n, "-", "_")
}

// Order gives the paths of the modules named and of all they need, each once, in an order in which they load.
// Names of what is built into the kernel give nothing.
func (d *ModuleDeps) Order(names []string) ([]string, error) {
	var order []string
	add := func(p string) {
		if !slices.Contains(order, p) {
			order = append(order, p)
		}
	}
	for _, n := range names {
		p, ok := d.paths[moduleName(n)]
		if !ok {
			if d.builtin[moduleName(n)] {
				continue
			}
			return nil, fmt.Errorf("the kernel has no module %s", n)
		}
		// depmod lists all that a module needs, the innermost last.
		for _, need := range slices.Backward(d.deps[p]) {
			add(need)
		}
		add(p)
	}
	return order, nil
}
