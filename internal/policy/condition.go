package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/checker"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/ext"

	"github.com/sallyport/sallyport/identity"
)

// The bounds of a condition, in CEL's unit of cost: about one visit of a value, or ten characters of a string.
const (
	assumedSize  = 4096       // what the estimate takes a claim, header or path for, in characters or elements
	estimateMost = 10_000_000 // a condition that could cost more with inputs of that size does not load
	costMost     = 100_000    // an evaluation that reaches it ends, and denies
	largest      = 64 << 10   // what is longer can only come with the request, where its limits are wider than they are by themselves
	nestingMost  = 2          // loops within loops
	regexMost    = 256        // characters of a regular expression
	programMost  = 2000       // instructions it compiles to
)

const headerVariable = "request.header"

// condition is a compiled When.
type condition struct {
	source  string
	program cel.Program
	free    cel.Program // the same, not watched; nil if it could reach costMost with inputs of the largest size
	headers []string
}

// compileCondition type-checks an expression and bounds its cost. hint helps whoever reads the error.
func compileCondition(source string, captures, headers []string) (c *condition, hint string, err error) {
	env, err := conditionEnv(captures)
	if err != nil {
		return nil, "", fmt.Errorf("declaring the variables: %w", err)
	}
	parsed, issues := env.Parse(source)
	if issues.Err() != nil {
		return nil, "a condition is written in CEL, for example: claims.tenant == path.tenant", issuesError(issues)
	}
	if hint, err := checkVariables(parsed.NativeRep().Expr(), captures); err != nil {
		return nil, hint, err
	}
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		return nil, "the variables are claims, request and path; strings have the functions of CEL's standard library and its strings extension", issuesError(issues)
	}
	if out := checked.OutputType(); !out.IsExactType(cel.BoolType) {
		return nil, "compare it with something, for example: claims.admin == true", fmt.Errorf("gives %s, not bool", out)
	}
	if hint, err := checkHeaders(checked.NativeRep().Expr(), headers); err != nil {
		return nil, hint, err
	}
	if err := checkRegexes(checked.NativeRep().Expr()); err != nil {
		return nil, "a regular expression stands in the condition as a literal string", err
	}
	estimate, err := env.EstimateCost(checked, assumedSizes(assumedSize))
	if err != nil {
		return nil, "", fmt.Errorf("estimating the cost: %w", err)
	}
	if estimate.Max > estimateMost {
		return nil, "avoid loops over claims within loops over claims, and texts built from claims",
			fmt.Errorf("could cost %d units for large claims, the most is %d", estimate.Max, uint64(estimateMost))
	}
	program, err := env.Program(checked, cel.CostLimit(costMost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, "", fmt.Errorf("compiling: %w", err)
	}
	c = &condition{source: source, program: program, headers: headers}
	c.free, err = unwatched(env, checked)
	return c, "", err
}

// unwatched is the program without a count of what it costs, which takes as long as all else, if inputs of the largest size cannot bring
// it to costMost: then there is nothing to watch.
func unwatched(env *cel.Env, checked *cel.Ast) (cel.Program, error) {
	estimate, err := env.EstimateCost(checked, assumedSizes(largest))
	if err != nil {
		return nil, fmt.Errorf("estimating the cost: %w", err)
	}
	if estimate.Max >= costMost {
		return nil, nil
	}
	program, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("compiling: %w", err)
	}
	return program, nil
}

// conditionEnv declares what a condition can name.
func conditionEnv(captures []string) (*cel.Env, error) {
	options := []cel.EnvOption{
		ext.Strings(),
		cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(maxCondition),
		cel.ParserRecursionLimit(50),
		cel.ASTValidators(cel.ValidateRegexLiterals(), cel.ValidateRegexProgramSizeLimit(programMost),
			cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateComprehensionNestingLimit(nestingMost)),
		cel.Variable("claims", cel.MapType(cel.StringType, cel.DynType)),
		cel.Variable(headerVariable, cel.MapType(cel.StringType, cel.StringType)),
	}
	for _, field := range requestFields() {
		options = append(options, cel.Variable("request."+field, cel.StringType))
	}
	for _, name := range captures {
		options = append(options, cel.Variable("path."+name, cel.StringType))
	}
	return cel.NewEnv(options...)
}

// requestFields are the members of request that are strings.
func requestFields() []string { return []string{"method", "path", "host", "source"} }

// checkVariables finds members of path and request that are not there, before the type checker calls them undeclared.
func checkVariables(expr ast.Expr, captures []string) (hint string, err error) {
	visit(expr, func(e ast.Expr) {
		if e.Kind() != ast.SelectKind || e.AsSelect().Operand().Kind() != ast.IdentKind || err != nil {
			return
		}
		field := e.AsSelect().FieldName()
		switch e.AsSelect().Operand().AsIdent() {
		case "path":
			if slices.Contains(captures, field) {
				return
			}
			err = fmt.Errorf("the pattern has no capture %q", field)
			hint = "it has none at all; name a part of the path, as in /orders/{id}"
			if len(captures) > 0 {
				hint = "it has: " + strings.Join(captures, ", ")
			}
		case "request":
			if fields := append(requestFields(), "header"); !slices.Contains(fields, field) {
				err = fmt.Errorf("request has no %q", field)
				hint = "it has: " + strings.Join(fields, ", ")
			}
		}
	})
	return hint, err
}

// checkHeaders finds headers that the condition reads by a constant name and the route does not list.
func checkHeaders(expr ast.Expr, headers []string) (hint string, err error) {
	isHeader := func(e ast.Expr) bool { return e.Kind() == ast.IdentKind && e.AsIdent() == headerVariable }
	read := func(name string) {
		if !slices.Contains(headers, name) && err == nil {
			err = fmt.Errorf("reads header %q, which the route does not list", name)
			hint = fmt.Sprintf("add to the route: headers: [%s]", strings.ToLower(name))
		}
	}
	constant := func(e ast.Expr) {
		if e.Kind() == ast.LiteralKind {
			if name, ok := e.AsLiteral().Value().(string); ok {
				read(name)
			}
		}
	}
	visit(expr, func(e ast.Expr) {
		switch {
		case isHeader(e) && len(headers) == 0 && err == nil:
			err, hint = errors.New("reads request headers, and the route lists none"), "list them in lower case: headers: [x-request-source]"
		case e.Kind() == ast.SelectKind && isHeader(e.AsSelect().Operand()):
			read(e.AsSelect().FieldName())
		case e.Kind() == ast.CallKind && len(e.AsCall().Args()) == 2:
			args := e.AsCall().Args()
			switch name := e.AsCall().FunctionName(); {
			case name == operators.Index && isHeader(args[0]):
				constant(args[1])
			case name == operators.In && isHeader(args[1]):
				constant(args[0])
			}
		}
	})
	return hint, err
}

// checkRegexes establishes that no request chooses a regular expression, and that none is large.
func checkRegexes(expr ast.Expr) (err error) {
	visit(expr, func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().FunctionName() != "matches" || err != nil {
			return
		}
		args := e.AsCall().Args()
		pattern := args[len(args)-1]
		if pattern.Kind() != ast.LiteralKind {
			err = errors.New("matches has a regular expression that is not a literal")
		} else if text, _ := pattern.AsLiteral().Value().(string); len(text) > regexMost {
			err = fmt.Errorf("has a regular expression longer than %d bytes", regexMost)
		}
	})
	return err
}

// visit calls f for an expression and all within it, parents first.
func visit(expr ast.Expr, f func(ast.Expr)) { ast.PreOrderVisit(expr, ast.NewExprVisitor(f)) }

// issuesError is CEL's issues on one line.
func issuesError(issues *cel.Issues) error {
	var texts []string
	for _, e := range issues.Errors() {
		text := strings.Join(strings.Fields(strings.ReplaceAll(e.Message, " (in container '')", "")), " ")
		texts = append(texts, fmt.Sprintf("line %d, column %d: %s", e.Location.Line(), e.Location.Column()+1, text))
	}
	return errors.New(strings.Join(texts, "; "))
}

// assumedSizes estimates the size of what a request brings.
type assumedSizes uint64

// EstimateSize gives every claim, header and path the same bound.
func (s assumedSizes) EstimateSize(checker.AstNode) *checker.SizeEstimate {
	return &checker.SizeEstimate{Min: 0, Max: uint64(s)}
}

// EstimateCallCost leaves the cost of functions to CEL.
func (assumedSizes) EstimateCallCost(string, string, *checker.AstNode, []checker.AstNode) *checker.CallEstimate {
	return nil
}

// holds evaluates the condition. The error says nothing that the request or the token brought.
func (c *condition) holds(s Selection, r Request, caller *identity.Caller) (bool, error) {
	program := c.program
	if c.free != nil && c.small(r) {
		program = c.free
	}
	out, _, err := program.Eval(&activation{condition: c, selection: s, request: r, caller: caller})
	if err != nil {
		return false, c.censor(err)
	}
	result, ok := out.(types.Bool)
	if !ok {
		return false, errors.New("the result is not a bool")
	}
	return bool(result), nil
}

// small reports whether nothing that the condition may read is over the largest size. Claims never are: a token has at most 8 KiB, and an
// authorization server's answer 64.
func (c *condition) small(r Request) bool {
	size := len(r.Method) + len(r.Path) + len(r.Host)
	for _, name := range c.headers {
		size += len(r.Header[name])
	}
	return size <= largest
}

// censor keeps of an evaluation error what the configuration says already: a missing key is named only if the condition
// itself spells it, since it could be the value of a claim.
func (c *condition) censor(err error) error {
	text := err.Error()
	if key, ok := strings.CutPrefix(text, "no such key: "); ok {
		if strings.Contains(c.source, key) {
			return fmt.Errorf("there is no %q", key)
		}
		return errors.New("there is no such key")
	}
	for _, known := range []struct{ part, meaning string }{
		{"no such overload", "a claim does not have the type that the condition takes it for"},
		{"cost limit exceeded", "the condition costs too much for this request"},
		{"index out of", "an index is out of range"},
	} {
		if strings.Contains(text, known.part) {
			return errors.New(known.meaning)
		}
	}
	return errors.New("evaluation error")
}

// activation gives a condition its variables.
type activation struct {
	condition *condition
	selection Selection
	request   Request
	caller    *identity.Caller
}

// ResolveName returns a variable by its qualified name.
func (a *activation) ResolveName(name string) (any, bool) {
	switch name {
	case "claims":
		if a.caller.Claims == nil {
			return map[string]any{}, true
		}
		return a.caller.Claims, true
	case "request.method":
		return a.request.Method, true
	case "request.path":
		return a.request.Path, true
	case "request.host":
		return a.request.Host, true
	case "request.source":
		return a.request.Source.String(), true
	case headerVariable:
		return a.headers(), true
	}
	if capture, ok := strings.CutPrefix(name, "path."); ok {
		value, ok := a.selection.Captures[capture]
		return value, ok
	}
	return nil, false
}

// Parent is part of CEL's interface: there is none.
func (a *activation) Parent() cel.Activation { return nil }

// headers are those that this route lists: the request carries other routes' as well.
func (a *activation) headers() map[string]string {
	listed := make(map[string]string, len(a.condition.headers))
	for _, name := range a.condition.headers {
		if value, ok := a.request.Header[name]; ok {
			listed[name] = value
		}
	}
	return listed
}
