// Package schema validates documents against JSON Schemas. Neither the author of a
// schema nor the author of a document is trusted, so the work and the memory of a
// validation are bounded by the size of the document, whatever the schema.
//
// # Why the library does not validate
//
// The library (santhosh-tekuri/jsonschema) parses and checks schemas. Its validator has
// no limit: a schema of a hundred bytes with two recursive $refs asks for 2^60
// evaluations of a document with 60 levels. So this package validates itself, with the
// library's compiled schema as input:
//
//	raw ──Compile──► jsonguard.Check ──► size limits ──► library ──► builder (compile.go)
//	                                                                     │
//	                                                                     ▼
//	                                      *Schema: a graph of nodes, with sets for enum
//	                                      and const, and compiled patterns
//	                                                                     │
//	document ──Validate──► evaluation (eval.go, object.go) ◄─────────────┘
//	                          pass 1: silent. Valid or not? Stops at the first violation
//	                          pass 2: only for an invalid document. Collects violations
//	                                  (message.go), at most MaxViolations
//
// A test compares the verdicts with those of the library's validator for random schemas
// and documents.
//
// # Budget
//
// Each pass has freeWork units plus workPerByte units for each byte of the document, and
// charges a step before the step runs. A step that would exceed the budget panics with
// abort, which Validate recovers: the document then has one violation that says so, or,
// in pass 2, the violations found so far. The context is checked every ctxCheckInterval
// units. Compile bounds the number of subschemas, the bytes of the pointers to them, and
// the instructions of all patterns together.
//
// # Ownership
//
// A *Schema is immutable after Compile and shared by all goroutines; an evaluation
// belongs to one call of Validate. Messages contain no values of the document, only
// member names and text of the schema: they are stored with the task and returned to
// clients.
package schema
