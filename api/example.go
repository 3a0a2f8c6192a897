package api

// Examples for the document. A test validates them against their schemas.

var exampleTask = map[string]any{
	"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a01", "workflowId": "order-workflow-123", "stepId": "total",
	"taskDefinitionId": "calculate-order-total", "taskType": "AUTOMATED", "status": "COMPLETED", "priority": "MEDIUM",
	"input":  map[string]any{"orderId": "ORD-123", "taxRate": 0.08, "items": []any{map[string]any{"id": "ITEM-1", "quantity": 2, "price": 10.99}}},
	"output": map[string]any{"orderId": "ORD-123", "subtotal": 21.98, "tax": 1.76, "total": 23.74},
	"error":  nil, "assignee": nil, "correlationId": "6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01", "retryCount": 0, "nextRetryTime": nil,
	"attempt": 1, "version": 3, "createdAt": "2026-11-02T09:30:00.000001Z", "startedAt": "2026-11-02T09:30:00.004Z",
	"endedAt": "2026-11-02T09:30:00.006Z", "executionTime": 2, "lane": "task-execution-automated", "executor": "expression",
	"definitionRevision": 1,
}

// exampleManualTask is a manual task as claim, unclaim and complete return it.
func exampleManualTask(status string) map[string]any {
	task := map[string]any{
		"taskId": "0198f2a4-7d3e-7c11-9a53-0a6c9b6f1a02", "workflowId": "order-workflow-123", "stepId": "approve",
		"taskDefinitionId": "approve-discount", "taskType": "MANUAL", "status": status, "priority": "HIGH",
		"input": map[string]any{"orderId": "ORD-123", "discount": 0.2}, "output": nil, "error": nil, "assignee": "jane",
		"correlationId": "6f1f0d5e-0d8e-4d0e-9a77-0a6c9b6f1a01", "retryCount": 0, "nextRetryTime": nil, "attempt": 1, "version": 3,
		"createdAt": "2026-11-02T09:30:00.000001Z", "startedAt": "2026-11-02T09:35:00Z", "endedAt": nil, "executionTime": nil,
		"lane": "task-execution-manual", "executor": "manual", "assigneeName": "jane", "groupId": "accounting",
		"assignedAt": "2026-11-02T09:35:00Z", "dueDate": "2026-11-03T09:30:00Z",
	}

	switch status {
	case "ASSIGNED":
		task["version"], task["assignee"], task["assignedAt"] = 4, nil, "2026-11-02T09:40:00Z"
		delete(task, "assigneeName")
	case "COMPLETED":
		task["version"], task["output"] = 4, map[string]any{"approved": true}
		task["endedAt"], task["executionTime"] = "2026-11-02T09:40:00Z", 300000
	}
	return task
}

func exampleDefinition(kept bool) map[string]any {
	d := map[string]any{
		"name": "Calculate order total", "description": "Adds up an order's lines and its tax", "type": "AUTOMATED", "version": "1.0.0",
		"inputSchema": map[string]any{"type": "object", "required": []any{"items"}}, "timeout": 60000,
		"retryPolicy":     map[string]any{"maxRetries": 3, "retryInterval": 1000, "backoffMultiplier": 2},
		"executionConfig": map[string]any{"executor": "expression", "expression": []any{map[string]any{"name": "total", "value": "sum(input.items.map(i, i.price))"}}},
	}

	if kept {
		d["id"], d["revision"], d["createdAt"], d["createdBy"] = "calculate-order-total", 1, "2026-11-02T09:00:00Z", "workflow-orchestrator"
	}

	return d
}
