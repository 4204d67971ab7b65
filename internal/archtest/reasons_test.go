package archtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// compiled is a package of this project with the files that it is made of, and
// where the compiler put what others need to know of it.
type compiled struct {
	ImportPath, Dir, Export string
	GoFiles                 []string
	Standard                bool
}

// program type-checks the packages of this project against what the compiler
// exported of their imports.
type program struct {
	fset     *token.FileSet
	packages []compiled
	imports  types.Importer
}

func load(t *testing.T) *program {
	t.Helper()
	cmd := exec.Command("go", "list", "-export", "-deps", "-json=ImportPath,Dir,Export,GoFiles,Standard", module+"/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	p := &program{fset: token.NewFileSet()}
	exports := map[string]string{}
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var c compiled
		err := dec.Decode(&c)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		exports[c.ImportPath] = c.Export
		if c.ImportPath == module || strings.HasPrefix(c.ImportPath, module+"/") {
			p.packages = append(p.packages, c)
		}
	}
	p.imports = importer.ForCompiler(p.fset, "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
	return p
}

func (p *program) check(t *testing.T, c compiled) ([]*ast.File, *types.Info) {
	t.Helper()
	var files []*ast.File
	for _, name := range c.GoFiles {
		f, err := parser.ParseFile(p.fset, filepath.Join(c.Dir, name), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Uses: map[*ast.Ident]types.Object{}}
	conf := types.Config{Importer: p.imports}
	if _, err := conf.Check(c.ImportPath, p.fset, files, info); err != nil {
		t.Fatal(err)
	}
	return files, info
}

// TestEveryReasonIsGiven closes what Go's types leave open. Outside the root
// package a Reason is one of its constants, or came from somebody who used one;
// no Why is made but by Because; and a struct that has a Why is written with it.
func TestEveryReasonIsGiven(t *testing.T) {
	t.Parallel()
	p := load(t)
	for _, c := range p.packages {
		if c.ImportPath == module {
			continue // it makes them
		}
		files, info := p.check(t, c)
		for _, f := range files {
			for _, found := range reasonless(f, info) {
				t.Errorf("%s: %s", p.fset.Position(found.pos), found.what)
			}
		}
	}
}

const madeUp = "a Reason is one of package atelier's, not a word made up here"

type finding struct {
	pos  token.Pos
	what string
}

func reasonless(f *ast.File, info *types.Info) (found []finding) {
	add := func(n ast.Node, what string) { found = append(found, finding{n.Pos(), what}) }
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CompositeLit:
			of := info.Types[n].Type
			if isNoun(of, "Why") {
				add(n, "a Why is made by atelier.Because, so that it has a reason")
			} else if forgetsWhy(n, of) {
				add(n, "a struct with a Why is written without it: say why")
			}
		case *ast.ValueSpec:
			if n.Type != nil && len(n.Values) == 0 && isNoun(info.Types[n.Type].Type, "Why") {
				add(n, "a Why without a reason: begin with atelier.Because")
			}
		case *ast.CallExpr:
			if to := info.Types[n.Fun]; to.IsType() && isNoun(to.Type, "Reason") {
				add(n, madeUp)
			}
		case *ast.BasicLit:
			if isNoun(info.Types[n].Type, "Reason") {
				add(n, madeUp)
			}
		case *ast.Ident:
			if c, ok := info.Uses[n].(*types.Const); ok && isNoun(info.Types[n].Type, "Reason") && c.Pkg().Path() != module {
				add(n, madeUp)
			}
		}
		return true
	})
	return found
}

// isNoun reports whether t is the type of package atelier with the name.
func isNoun(t types.Type, name string) bool {
	named, ok := types.Unalias(t).(*types.Named)
	return ok && named.Obj().Name() == name && named.Obj().Pkg() != nil && named.Obj().Pkg().Path() == module
}

// forgetsWhy reports whether a literal with something in it, of a struct that has
// a Why, does not say why.
func forgetsWhy(n *ast.CompositeLit, of types.Type) bool {
	s, ok := of.Underlying().(*types.Struct)
	if !ok || len(n.Elts) == 0 {
		return false
	}
	for i := range s.NumFields() {
		if !isNoun(s.Field(i).Type(), "Why") {
			continue
		}
		said := false
		for _, e := range n.Elts {
			kv, keyed := e.(*ast.KeyValueExpr)
			if !keyed {
				return false // then all fields are there
			}
			said = said || kv.Key.(*ast.Ident).Name == s.Field(i).Name()
		}
		return !said
	}
	return false
}
