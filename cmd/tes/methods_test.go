package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// mostMethods is the largest number of methods of a type. A type above it serves several purposes,
// and a reader cannot know where a line belongs.
const mostMethods = 40

// largeTypes are the exceptions, each with its number of methods. A number may only fall; a type at
// or below mostMethods leaves the list.
var largeTypes = map[string]int{}

// TestMethods proves that no type has more than mostMethods methods. Generated code and tests are
// not counted, nor are methods of embedded types.
func TestMethods(t *testing.T) {
	t.Parallel()
	counts := map[string]int{}
	for _, floor := range floors {
		require.NoError(t, filepath.WalkDir("../../"+floor, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil || ast.IsGenerated(file) {
				return err
			}
			room := strings.TrimPrefix(filepath.ToSlash(filepath.Dir(path)), "../../")
			for _, name := range receivers(file) {
				counts[room+"."+name]++
			}
			return nil
		}))
	}

	require.Positive(t, counts["jobs.Tasks"], "no methods were found")
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if most, large := largeTypes[name]; large {
			require.LessOrEqual(t, counts[name], most, "%s grows: split it by what it serves", name)
			require.Greater(t, counts[name], mostMethods, "%s is small enough: take it off largeTypes", name)
			continue
		}
		require.LessOrEqual(t, counts[name], mostMethods, "%s: split it by what it serves", name)
	}
}

// receivers returns the receiver's type of each method in a file, without its type parameters.
func receivers(file *ast.File) (names []string) {
	for _, decl := range file.Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv == nil {
			continue
		}
		of := fn.Recv.List[0].Type
		if star, ok := of.(*ast.StarExpr); ok {
			of = star.X
		}
		switch generic := of.(type) {
		case *ast.IndexExpr:
			of = generic.X
		case *ast.IndexListExpr:
			of = generic.X
		}
		if name, ok := of.(*ast.Ident); ok {
			names = append(names, name.Name)
		}
	}
	return names
}

// TestReceivers proves that methods of every form are counted.
func TestReceivers(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "", `package p
func plain() {}
func (T) value() {}
func (t *T) pointer() {}
func (g *G[K]) one() {}
func (g G[K, V]) two() {}`, parser.SkipObjectResolution)
	require.NoError(t, err)
	require.Equal(t, []string{"T", "T", "G", "G"}, receivers(file))
}
