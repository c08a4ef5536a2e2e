package smolvmm_test

import (
	"bytes"
	"debug/elf"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// sources parses every Go file of the tree, whatever it is built for.
func sources(t *testing.T) (*token.FileSet, map[string]*ast.File) {
	t.Helper()
	fset, files := token.NewFileSet(), map[string]*ast.File{}
	err := fs.WalkDir(os.DirFS("."), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			// bin has what was built, testdata what tests build themselves.
			if base := d.Name(); name != "." && (base == "bin" || base == "testdata" || base[0] == '.' && base != ".ci") {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) == ".go" {
			files[name], err = parser.ParseFile(fset, name, nil, 0)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 50 {
		t.Fatalf("%d Go files found only: is this the module's root?", len(files))
	}
	return fset, files
}

func imported(f *ast.File) []string {
	var out []string
	for _, i := range f.Imports {
		p, _ := strconv.Unquote(i.Path.Value)
		out = append(out, p)
	}
	return out
}

// TestUnsafeIsQuarantined: who reviews memory safety has to read these files only.
func TestUnsafeIsQuarantined(t *testing.T) {
	_, files := sources(t)
	for name, f := range files {
		named := strings.HasSuffix(name, "_unsafe.go") || strings.HasSuffix(name, "_unsafe_test.go")
		uses := slices.Contains(imported(f), "unsafe")
		switch {
		case uses && !named:
			t.Errorf("%s imports unsafe: it may only be in files named *_unsafe.go, where it is looked for", name)
		case named && !uses:
			t.Errorf("%s needs no unsafe: its name says otherwise", name)
		}
		if slices.Contains(imported(f), "C") {
			t.Errorf("%s uses cgo: smolvmm is one static binary of Go", name)
		}
	}
}

// ofTheProcess are what belongs to a command: a library that reads them cannot be
// embedded. The value says which names of a package; "" is all of it.
var ofTheProcess = map[string][]string{
	"os":                     {"Exit", "Getenv", "LookupEnv", "Environ", "Setenv", "Unsetenv", "Clearenv", "ExpandEnv", "Args", "Stdin", "Stdout", "Stderr", "Chdir"},
	"log":                    {"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln", "Print", "Printf", "Println", "SetOutput", "Default"},
	"log/slog":               {"SetDefault", "Default"},
	"os/signal":              {""},
	"flag":                   {""},
	"github.com/spf13/pflag": {""},
	"golang.org/x/term":      {""},
	"runtime/debug":          {"SetGCPercent", "SetMemoryLimit", "SetMaxThreads", "SetPanicOnFault", "SetTraceback"},
	"golang.org/x/sys/unix":  {"Chdir", "Umask", "Setrlimit", "Exit"},
	"syscall":                {"Exit", "Umask", "Setrlimit", "Chdir"},
}

// ofCommands are the folders of programs; what tests do in processes of their
// own is theirs.
func ofCommands(name string) bool {
	return strings.HasPrefix(name, "cmd/") || strings.HasPrefix(name, "bench/") || strings.HasPrefix(name, ".ci/") || strings.HasSuffix(name, "_test.go")
}

// TestProcessIsTheCommands: flags, environment, terminal, standard streams and the
// end of the process are cmd's and bench's.
func TestProcessIsTheCommands(t *testing.T) {
	fset, files := sources(t)
	for name, f := range files {
		if ofCommands(name) {
			continue
		}
		local := map[string]string{} // the name that a file uses for a package
		for _, i := range f.Imports {
			p, _ := strconv.Unquote(i.Path.Value)
			names, ok := ofTheProcess[p]
			if !ok {
				continue
			}
			if names[0] == "" {
				t.Errorf("%s imports %s: commands alone handle flags, signals and terminals", name, p)
				continue
			}
			local[path.Base(p)] = p
			if i.Name != nil {
				local[i.Name.Name] = p
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(ofTheProcess[local[x.Name]], sel.Sel.Name) {
				t.Errorf("%v: %s.%s: it belongs to the process, and a library is a guest in it: take it as an argument", fset.Position(sel.Pos()), x.Name, sel.Sel.Name)
			}
			return true
		})
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%v: func init: importing a package does nothing; do the work at first use", fset.Position(fn.Pos()))
			}
		}
	}
}

const (
	longFile    = 500 // lines: from here on a file is mentioned
	tooLongFile = 650 // lines: from here on it needs a reason
)

// longFor are files with a reason to be longer.
var longFor = map[string]string{}

// TestFilesAreShort: a file is read in one go.
func TestFilesAreShort(t *testing.T) {
	_, files := sources(t)
	for name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		switch n := bytes.Count(b, []byte("\n")); {
		case n > tooLongFile && longFor[name] == "":
			t.Errorf("%s has %d lines: split it, or give the reason in longFor", name, n)
		case n > longFile:
			t.Logf("%s has %d lines %s", name, n, longFor[name])
		}
	}
	for name := range longFor {
		if files[name] == nil {
			t.Errorf("longFor names %s, which is not there", name)
		}
	}
}

// build builds a package and gives the program's path.
func build(t *testing.T, pkg string, env ...string) string {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skipf("NOT RUN: nothing was built: %v", err)
	}
	out := filepath.Join(t.TempDir(), path.Base(pkg))
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, pkg)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly"), env...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, b)
	}
	return out
}

// TestProgramsAreStatic: they run on any Linux, and smolinit in a guest that has
// nothing else.
func TestProgramsAreStatic(t *testing.T) {
	for _, c := range []struct {
		pkg, goos string
		abi       elf.OSABI
	}{
		{"./cmd/smolvmm", "linux", elf.ELFOSABI_NONE},
		{"./cmd/smolvmm/smolvmm-full", "linux", elf.ELFOSABI_NONE},
		{"./cmd/smolinit", "netbsd", elf.ELFOSABI_NETBSD},
	} {
		f, err := elf.Open(build(t, c.pkg, "GOOS="+c.goos, "GOARCH=amd64"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.OSABI != c.abi {
			t.Errorf("%s for %s: the ABI is %v", c.pkg, c.goos, f.OSABI)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s for %s wants a dynamic linker: it must be static", c.pkg, c.goos)
			}
		}
	}
}

// maxInit bounds what the initialisation of one package of this module may
// allocate in the command, in bytes: tables that the compiler cannot lay out.
const maxInit = 64 << 10

// TestInitDoesNothing: what a package costs before it is used is paid by each of
// a thousand machines on a host.
func TestInitDoesNothing(t *testing.T) {
	cmd := exec.Command(build(t, "./cmd/smolvmm"), "version")
	cmd.Env = append(os.Environ(), "GODEBUG=inittrace=1")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	lines := 0
	for line := range strings.Lines(stderr.String()) {
		// init PACKAGE @0.5 ms, 0.02 ms clock, 1234 bytes, 5 allocs
		f := strings.Fields(line)
		if len(f) < 9 || f[0] != "init" {
			continue
		}
		lines++
		n, err := strconv.Atoi(f[7])
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if strings.HasPrefix(f[1], module) || f[1] == "main" {
			t.Log(strings.TrimSpace(line))
			if n > maxInit {
				t.Errorf("%s allocates %d bytes when it is imported, at most %d: do it at first use", f[1], n, maxInit)
			}
		}
	}
	if lines == 0 {
		t.Fatalf("the runtime told of no initialisation:\n%s", stderr.String())
	}
}

// TestDocsNameRealTests: a defence whose proof has been renamed away has none.
func TestDocsNameRealTests(t *testing.T) {
	_, files := sources(t)
	there := map[string]bool{}
	for name, f := range files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && strings.HasSuffix(name, "_test.go") {
				there[fn.Name.Name] = true
			}
		}
	}
	pages, err := filepath.Glob("docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatalf("no docs: %v", err)
	}
	named := regexp.MustCompile(`\b(?:Test|Fuzz)[A-Z]\w+`)
	found := 0
	for _, page := range append(pages, "README.md") {
		b, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range named.FindAllString(string(b), -1) {
			found++
			if !there[name] {
				t.Errorf("%s names %s, which is no test", page, name)
			}
		}
	}
	if found == 0 {
		t.Error("no page names a test: has the threat model lost its proofs?")
	}
}
