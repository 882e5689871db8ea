/* Shows the OpenAPI document of this service with Swagger UI. */

window.segLossDocs = SwaggerUIBundle({
  url: "/openapi.json",
  domNode: document.getElementById("api"),
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // Its badge is an image of another site.
});
