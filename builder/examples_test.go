package builder

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/builder/tree"
)

// TestExamples builds each of the service files, with sets that have what they
// name, and a machine that does nothing.
func TestExamples(t *testing.T) {
	names, err := filepath.Glob("examples/*/Dockerfile")
	if err != nil || len(names) != 6 {
		t.Fatalf("%v %v", names, err)
	}
	for _, name := range names {
		dir := filepath.Dir(name)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if s := string(text); !strings.HasPrefix(s, "# ") || !strings.Contains(s, "#   smolvmm build") || !strings.Contains(s, "#   smolvmm run") {
				t.Error("it does not say how to run it")
			}
			b := newBench(t)
			b.sets.sets["rescue"] = treeOf(t, "rescue/sh", "sh")
			b.sets.sets["etc"] = treeOf(t, "etc/passwd", "root:*:0:0::/root:/bin/sh\n_httpd:*:24:24::/var/www:/x\nnobody:*:32767:39::/:/x\nuser:*:1000:100::/home/user:/bin/ksh\n",
				"etc/group", "wheel:*:0:root\n_httpd:*:24:\n")
			if err := os.CopyFS(b.dir, os.DirFS(dir)); err != nil {
				t.Fatal(err)
			}
			for _, f := range []string{"key.pub", "goweb"} {
				b.file(f, "given by the user")
			}
			if ignore, err := os.ReadFile(filepath.Join(dir, ".dockerignore")); err == nil {
				b.o.Ignore = ignore
			}
			b.o.Toolbox = withNobody{}
			res, _ := b.build(string(text))
			if res.Name != filepath.Base(dir) || len(res.Image.Config.Argv(nil)) == 0 {
				t.Errorf("%q: %+v", res.Name, res.Image)
			}
			if w := b.warnings(); w != "" {
				t.Error(w)
			}
		})
	}
}

// withNobody has the user that the real FROM scratch has.
type withNobody struct{ fakeTools }

func (withNobody) Scratch() (*tree.Tree, error) {
	t := tree.New()
	return t, t.Put("etc/passwd", tree.NewFile(0o644, tree.Bytes("nobody:*:32767:39::/:/x\n")))
}
