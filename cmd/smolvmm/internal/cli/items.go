package cli

import (
	"encoding/json"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
)

// Names of fw_cfg items that smolinit reads (docs/smolinit.md).
const (
	itemInit   = "opt/smolvmm/init.json"
	itemEnv    = "opt/smolvmm/env/"
	itemFile   = "opt/smolvmm/file/"
	itemSecret = "opt/smolvmm/secret/"
)

// Wipe zeroes the values of items that no machine needs any more.
func Wipe(items []vmm.Item) {
	for _, it := range items {
		it.Wipe()
	}
}

// items makes the guest's configuration out of -e, -E, --secret, -fw_cfg and
// the command behind "--"; rootRO is told to smolinit, whose kernel cannot see it.
// No error shows a value: any of them may be one that nobody should see in a log.
func (b *BootFlags) items(argv []string, rootRO bool, env func(string) (string, bool)) (out []vmm.Item, err error) {
	defer func() {
		if err != nil {
			Wipe(out)
			out = nil
		}
	}()
	add := func(flags []string, read func(string) (vmm.Item, error)) error {
		for _, s := range flags {
			it, err := read(s)
			if err != nil {
				return err
			}
			for _, have := range out {
				if have.Name() == it.Name() {
					it.Wipe()
					return Usagef("%s is given twice: leave one out", it.Name())
				}
			}
			out = append(out, it)
		}
		return nil
	}
	if err := add(b.Env, func(s string) (vmm.Item, error) { return variable(s, env) }); err != nil {
		return out, err
	}
	if err := add(b.Files, fileFor); err != nil {
		return out, err
	}
	if err := add(b.Secrets, func(s string) (vmm.Item, error) { return secret(s, env) }); err != nil {
		return out, err
	}
	if err := add(b.Fwcfg, rawItem); err != nil {
		return out, err
	}
	config := map[string]any{}
	maps.Copy(config, b.Init)
	if len(argv) > 0 {
		config["argv"] = argv
	}
	if rootRO {
		config["root_readonly"] = true
	}
	own := slices.ContainsFunc(out, func(it vmm.Item) bool { return it.Name() == itemInit })
	if len(config) == 0 || len(argv) == 0 && own {
		return out, nil
	}
	init, err := json.Marshal(config)
	if err != nil {
		return out, err
	}
	return out, add([]string{string(init)}, func(s string) (vmm.Item, error) { return item("--", itemInit, []byte(s)) })
}

func variable(s string, env func(string) (string, bool)) (vmm.Item, error) {
	k, v, err := Variable(s, env)
	if err != nil {
		return vmm.Item{}, err
	}
	return item("-env "+k, itemEnv+k, []byte(v))
}

// Variable reads -e K=V, or -e K with the value this process's own, as docker run
// has it.
func Variable(s string, env func(string) (string, bool)) (k, v string, err error) {
	k, v, ok := strings.Cut(s, "=")
	if k == "" {
		return "", "", Usagef("-env: a variable needs a name: -env NAME=VALUE")
	}
	if !ok {
		if v, ok = env(k); !ok {
			return "", "", Usagef("-env %s: not set in the environment; give -env %s=VALUE", k, k)
		}
	}
	return k, v, nil
}

// fileFor reads -E NAME=FILE.
func fileFor(s string) (vmm.Item, error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok || name == "" || path == "" {
		return vmm.Item{}, Usagef("-file %q: must be NAME=FILE", s)
	}
	return fileItem("-file "+name, itemFile+name, path)
}

// secret reads --secret NAME or NAME=@FILE. A value on the command line is
// refused: ps would show it.
func secret(s string, env func(string) (string, bool)) (vmm.Item, error) {
	name, value, has := strings.Cut(s, "=")
	path, isFile := strings.CutPrefix(value, "@")
	switch {
	case name == "":
		return vmm.Item{}, Usagef("-secret: a secret needs a name: NAME (from the environment) or NAME=@FILE")
	case has && !isFile:
		return vmm.Item{}, Usagef("-secret %s=…: a value on the command line is there for ps to see; use -secret %s with the variable set, or %s=@FILE", name, name, name)
	case has && path == "":
		return vmm.Item{}, Usagef("-secret %s=@: no file named", name)
	case has:
		return fileItem("-secret "+name, itemSecret+name, path)
	}
	v, ok := env(name)
	if !ok {
		return vmm.Item{}, Usagef("-secret %s: not set in the environment; set it, or give %s=@FILE", name, name)
	}
	return item("-secret "+name, itemSecret+name, []byte(v))
}

// rawItem reads QEMU's name=…,string=…|file=….
func rawItem(s string) (vmm.Item, error) {
	var name string
	var value, file *string
	bad := Usagef("-fw_cfg: must be name=NAME,string=TEXT or name=NAME,file=FILE (a comma within is written twice)")
	for i, o := range splitCommas(s) {
		k, v, ok := strings.Cut(o, "=")
		switch {
		case ok && k == "name":
			name = v
		case ok && k == "string" && value == nil:
			value = &v
		case ok && k == "file" && file == nil:
			file = &v
		case !ok && i == 0:
			name = k // QEMU takes a bare first word for the name
		default:
			return vmm.Item{}, bad
		}
	}
	switch {
	case name == "" || (value == nil) == (file == nil):
		return vmm.Item{}, bad
	case value != nil:
		return item("-fw_cfg", name, []byte(*value))
	}
	return fileItem("-fw_cfg "+name, name, *file)
}

// item makes an item, and names the flag in its error.
func item(flag, name string, value []byte) (vmm.Item, error) {
	it, err := vmm.NewItem(name, value)
	if err != nil {
		return it, Usagef("%s: %w", flag, err)
	}
	return it, nil
}

// fileItem is item with the value in a file.
func fileItem(flag, name, path string) (vmm.Item, error) {
	f, err := os.Open(path)
	if err != nil {
		return vmm.Item{}, Usagef("%s: %s: %w", flag, path, Plain(err))
	}
	defer f.Close()
	it, err := vmm.ReadItem(name, f)
	if err != nil {
		return it, Usagef("%s: %s: %w", flag, path, Plain(err))
	}
	return it, nil
}
