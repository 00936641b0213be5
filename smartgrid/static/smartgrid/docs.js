// Starts Swagger UI; in a file of its own because the page allows no script inside it.
window.addEventListener("load", () => {
  const place = document.getElementById("swagger-ui");
  SwaggerUIBundle({
    url: place.dataset.description,
    domNode: place,
    deepLinking: true,
    displayRequestDuration: true,
    filter: true,
    docExpansion: "list",
    // Credentials are gone with the page.
    persistAuthorization: false,
    // None of the outside: it would be told the address of this description.
    validatorUrl: null,
  });
});
