// Shows openapi.json of the gateway that serves this page. Nothing is asked of anybody else: no validator.
"use strict";
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#api",
  validatorUrl: null,
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  displayOperationId: true,
  filter: true,
});
